package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/keyporter/keyporter/client"
)

// A subscription changes: its account gets another plan, once, whatever is repeated, and the next
// request of each of its users is decided by it.
func Example() {
	ctx := context.Background()
	address := exampleAPI() // such as https://keyporter.internal:9012
	api, err := client.New(address, client.NewSecret("the-token-of-billing"), client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	done, err := api.Once("evt_17").SetAccount(ctx, "acme", client.AccountChange{Plan: new("pro"), Status: new("active")})
	if errors.Is(err, client.ErrMissing) {
		log.Fatal("make the plan first")
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := done.Wait(ctx); err != nil { // at once if it is confirmed, as nearly always
		log.Fatal(err)
	}
	fmt.Println(done.Value.Name, "has the plan", done.Value.Plan)
	for row, err := range api.Usage(ctx, client.UsageQuery{From: "2026-11", To: "2026-11"}) {
		if err != nil {
			log.Fatal(err) // the list is not complete
		}
		fmt.Println(row.Account, "is charged", row.Charged)
	}
	// Output:
	// acme has the plan pro
	// acme is charged 1479
}

// exampleAPI answers the calls of the example, and returns its address.
func exampleAPI() string {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/accounts/acme", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"name":"acme","kind":"organization","plan":"pro","status":"active","confirmed":true,"replicas":{"total":2,"acknowledged":2,"expired":0},"took_ms":4}`)
	})
	mux.HandleFunc("GET /v1/usage", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"items":[{"month":"2026-11","account":"acme","used":1540,"refunded":61,"charged":1479}]}`)
	})
	return httptest.NewServer(mux).URL
}

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/client"
	"github.com/keyporter/keyporter/internal/operations"
)

// here are the commands that ask neither a service nor a database: --server says nothing to them.
var here = []string{"envoy", "envoy check", "envoy secret", "config check", "config show", "healthcheck", "version"}

// Each command has a remote form, or says why it has none and what to do, or is about this machine
// alone. The remote forms name operations of the API.
func TestEachCommandHasARemoteFormOrSaysWhyNot(t *testing.T) {
	api := httptest.NewServer(admin.New(admin.Config{
		Caller:   func(*http.Request) (bearer.Caller, bool) { return bearer.Caller{Name: "test", Rate: 100}, true },
		Operator: func(string) operations.Operator { return operations.Operator{} },
	}))
	defer api.Close()
	c, err := client.New(api.URL, client.NewSecret("token"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	document, err := c.OpenAPI(t.Context())
	if err != nil || !json.Valid(document) {
		t.Fatal(err)
	}
	eachCommand((&app{}).root(), func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), "keyporter ")
		forms := 0
		for _, is := range []bool{remoteForms[name] != nil, localOnly[name] != "", slices.Contains(here, name)} {
			if is {
				forms++
			}
		}
		if forms != 1 {
			t.Errorf("%s is in %d of the lists remoteForms, localOnly and here, want one", name, forms)
		}
		for _, id := range remoteForms[name] {
			if !strings.Contains(string(document), `"operationId":"`+id+`"`) {
				t.Errorf("%s: the API has no operation %s", name, id)
			}
		}
		if why := localOnly[name]; why != "" {
			args := append(strings.Fields(name), argument.FindAllString(cmd.Use, -1)...)
			var problems strings.Builder
			status := run(t.Context(), append(args, "--server", api.URL, "--token-file", "token"), io.Discard, &problems)
			if status != exitUsage || !strings.Contains(problems.String(), why) {
				t.Errorf("%s: status %d, %s", name, status, problems.String())
			}
		}
	})
}

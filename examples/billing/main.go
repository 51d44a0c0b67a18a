// Command billing is an example of a billing system that drives Keyporter: it takes events of a
// payment provider from files, in any order and as often as they come, and sets plans, statuses and
// credits by the operators' API.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"

	"github.com/keyporter/keyporter/client"
)

func main() {
	server := flag.String("server", "http://127.0.0.1:9012", "`URL` of the operators' API")
	token := flag.String("token-file", "billing.token", "`file` with a token that has the scopes write and credits")
	file := flag.String("books", "books.json", "`file` with what is known of subscriptions and invoices")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *server, *token, *file, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "billing:", err)
		os.Exit(1)
	}
}

// run handles the events in files. An event that fails ends it: it is to be delivered again.
func run(ctx context.Context, server, token, file string, files []string) error {
	text, err := os.ReadFile(token)
	if err != nil {
		return err
	}
	api, err := client.New(server, client.NewSecret(strings.TrimSpace(string(text))), client.Options{})
	if err != nil {
		return err
	}
	var b books
	if err := read(file, &b); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range files {
		var e event
		if err := read(name, &e); err != nil {
			return err
		}
		if err := handle(ctx, api, &b, e); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := write(file, &b); err != nil {
			return err
		}
	}
	return nil
}

// handle makes an event count. The books are written when the API has confirmed: after a crash in
// between, the repeated event sets the same again.
func handle(ctx context.Context, api *client.Client, b *books, e event) error {
	account, err := b.take(e)
	if err != nil {
		return err
	}
	if account != "" {
		plan, status := b.state(account)
		done, err := api.SetAccount(ctx, account, client.AccountChange{Plan: &plan, Status: &status})
		if errors.Is(err, client.ErrMissing) {
			return fmt.Errorf("%w: make the plan first: keyporter plan set %s", err, plan)
		}
		if err != nil {
			return err
		}
		if err := done.Wait(ctx); err != nil { // until no replica decides by the old plan
			return err
		}
		fmt.Printf("%s: %s has the plan %s and is %s\n", e.ID, account, plan, status)
	}
	invoice, g, err := b.credits(e)
	if err != nil || invoice == "" {
		return err
	}
	if g.Credits > 0 {
		// The key counts for a week, the books for ever.
		done, err := api.Once("invoice-"+invoice).GrantCredits(ctx, g.User, g.Credits)
		if err != nil {
			return err
		}
		if err := done.Wait(ctx); err != nil {
			return err
		}
		fmt.Printf("%s: %s has %d credits more\n", e.ID, g.User, g.Credits)
	}
	if b.Invoices == nil {
		b.Invoices = map[string]bool{}
	}
	b.Invoices[invoice] = true
	return nil
}

func read(name string, into any) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// write replaces a file as a whole.
func write(name string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

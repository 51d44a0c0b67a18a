package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// The example of docs/usage.md prints what the document shows, for the month of the test.
func TestTheInvoiceOfTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/usage.md")
	if err != nil {
		t.Fatal(err)
	}
	url := "sqlite://" + filepath.Join(t.TempDir(), "k.db")
	month := invoiced(t, url)
	_, block, _ := strings.Cut(strings.ReplaceAll(string(text), "2026-11", month.String()), "<!-- invoice -->\n```console\n")
	block, _, _ = strings.Cut(block, "```")
	examples := strings.Split(block, "$ ")[1:]
	if len(examples) != 6 {
		t.Fatalf("%d commands", len(examples))
	}
	folder := t.TempDir()
	for _, example := range examples {
		line, want, _ := strings.Cut(example, "\n")
		command := exec.CommandContext(t.Context(), "/bin/sh", "-c", line)
		command.Dir = folder
		command.Env = append(os.Environ(), "KEYPORTER_DATABASE="+url, "PATH="+filepath.Dir(program(t))+":"+os.Getenv("PATH"))
		out, err := command.CombinedOutput()
		pattern := strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".+")
		if err != nil || !regexp.MustCompile(`^`+pattern+`$`).Match(out) {
			t.Errorf("%s: %v\n%s\nwant\n%s", line, err, out, want)
		}
	}
}

// invoiced makes the users of the example and their use of this month.
func invoiced(t *testing.T, url string) usage.Month {
	t.Helper()
	db := storetest.Open(t, store.Config{URL: url})
	storetest.WithAda(t, db)
	storetest.WithUser(t, db, "bob")
	_, _, err1 := directory.New(db).SetAccount(t.Context(), "solo", directory.AccountChange{Plan: new("pro")}, "")
	_, _, err2 := directory.New(db).SetUser(t.Context(), "eve", directory.UserChange{Account: new("solo")}, "")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	month := usage.MonthOf(time.Now())
	r := ledger.Report{Holder: "one", Seq: 1, Last: true}
	for i, one := range []struct {
		user, account            string
		used, reported, refunded int64
	}{{"ada", "acme", 1200, 1188, 61}, {"bob", "acme", 340, 340, 0}, {"eve", "solo", 75, 75, 75}} {
		payer := ledger.Payer{Month: month, User: one.user, Account: one.account}
		r.Asks = append(r.Asks, ledger.Ask{Pool: ledger.Pool{Month: month, Name: one.user}, Used: one.used, Keep: one.used})
		r.Usages = append(r.Usages, ledger.Usage{Payer: payer, Used: one.used})
		r.Outcomes = append(r.Outcomes, ledger.Outcome{ChargeID: ledger.ChargeID{Holder: "one", Number: uint64(i)}, Month: month, User: one.user, Account: one.account,
			Credits: one.reported, Refund: one.refunded, Cause: ledger.CauseSettled})
	}
	if _, err := storeledger.New(db).Report(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return month
}

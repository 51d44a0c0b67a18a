package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/store/directory"
)

// A refusal that another command makes possible names that command, with the names in it.
func TestARefusalNamesTheCommandThatHelps(t *testing.T) {
	t.Parallel()
	url := "sqlite://" + filepath.Join(t.TempDir(), "k.db")
	complaint := func(command string) string {
		var problems strings.Builder
		run(t.Context(), append(strings.Fields(command), "--database", url), io.Discard, &problems)
		return problems.String()
	}
	for _, row := range []struct{ command, want string }{
		{"migrate", ""},
		{"account set acme --plan pro", "setting account acme: plan pro: not found: create it with `keyporter plan set pro`"},
		{"plan set pro", ""},
		{"user set ada --account acme", "setting user ada: account acme: not found: create it with `keyporter account set acme --plan PLAN`"},
		{"account set acme --plan pro", ""},
		{"key create ada", "creating a key for user ada: the user was not found: create them with `keyporter user set ada --account ACCOUNT`"},
		{"user show ada", "finding user ada: the user was not found: create them with `keyporter user set ada --account ACCOUNT`"},
		{"session revoke ada", "revoking the sessions of user ada: the user was not found: create them with `keyporter user set ada --account ACCOUNT`"},
		{"user set ada --account acme --subject s", ""},
		{"user set bob --account acme --subject s", "setting user bob: another user with the subject \"s\" exists already: take it from them first with `keyporter user set NAME --subject ''`"},
		{"key regenerate ada", "regenerating the key of user ada: a live key was not found: make one with `keyporter key create ada`"},
		{"key revoke ada", "revoking the key of user ada: a live key was not found: there is nothing to revoke"},
		{"key create ada --idempotency-key call", ""},
		{"key create ada", "creating a key for user ada: a live key exists already: replace it with `keyporter key regenerate ada`"},
		{"key create ada --idempotency-key other", "creating a key for user ada: a live key exists already: replace it with `keyporter key regenerate ada`"},
	} {
		got := strings.TrimSuffix(strings.TrimPrefix(complaint(row.command), "keyporter: "), "\n")
		if row.want != "" && got != row.want || row.want == "" && strings.Contains(got, "keyporter") {
			t.Errorf("%s: %s\nwant %s", row.command, got, row.want)
		}
	}
}

// Each fix of the directory has a command that exists.
func TestEachFixIsACommand(t *testing.T) {
	t.Parallel()
	root := (&app{}).root()
	for fix := directory.CreatePlan; fix <= directory.ReleaseSubject; fix++ {
		_, command, _ := strings.Cut(fixes[fix], "`keyporter ")
		cmd, _, err := root.Find(strings.Fields(command))
		if err != nil || cmd.HasSubCommands() {
			t.Errorf("fix %d is %q: %v", fix, fixes[fix], err)
		}
	}
}

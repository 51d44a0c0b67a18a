package main

import (
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/internal/config"
)

// An explicit empty value, such as that of an unset shell variable, is a usage error, for each flag
// whose absence has another meaning and for each argument. The command then does nothing.
func TestAnEmptyValueIsUsedWrongly(t *testing.T) {
	root := (&app{}).root()
	try := func(cmd *cobra.Command, want string, args ...string) {
		var problems strings.Builder
		args = append(strings.Fields(cmd.CommandPath())[1:], args...)
		if status := run(t.Context(), args, io.Discard, &problems); status != exitUsage || !strings.Contains(problems.String(), want) {
			t.Errorf("keyporter %q: status %d, %s", args, status, problems.String())
		}
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.HasSubCommands() || cmd.Name() == "help" || cmd.Parent().Name() == "completion" {
			return
		}
		args := argument.FindAllString(cmd.Use, -1)
		for i := range args {
			given := slices.Clone(args)
			given[i] = ""
			try(cmd, "an argument is empty", given...)
		}
		cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
			if mayBe := slices.ContainsFunc(config.Settings(), func(s config.Setting) bool { return s.Name == flag.Name && s.Default == "" }); mayBe || flag.Name == "subject" || flag.Value.Type() == "bool" {
				return
			}
			want := "--" + flag.Name
			if flag.Value.Type() == "string" {
				want += ": the value is empty"
			}
			try(cmd, want, append(args, "--"+flag.Name+"=")...)
		})
	}
	walk(root)
}

// argument matches the arguments in a usage line.
var argument = regexp.MustCompile(`\b[A-Z|]+\b`)

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/store"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed
	exitUsage  = 2 // used wrongly
)

// usageError is a mistake in how the program was called or configured.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errRefused ends a command with status 1 after it has said all there is to say on standard output.
var errRefused = errors.New("refused")

// app is one call of the program.
type app struct {
	stdout, stderr io.Writer
	environ        []string
}

// run runs the command that args name and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr, environ: os.Environ()}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch usage := (usageError{}); {
	case err == nil:
		return exitDone
	case errors.Is(err, errRefused):
		return exitFailed
	case errors.As(err, &usage), errors.Is(err, store.ErrInvalid):
		a.complain(err)
		fmt.Fprintln(stderr, "Run `keyporter help` or `keyporter COMMAND --help` for what there is.")
		return exitUsage
	}
	a.complain(err)
	return exitFailed
}

// keyDigits matches what stands after the prefix of a key or a session.
var keyDigits = regexp.MustCompile(`[0-9a-f]{48,}`)

// complain prints an error, which may be several, one line each. Who gives a key where a name belongs,
// to revoke one that was found somewhere, does not find it in the log as well.
func (a *app) complain(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(a.stderr, "keyporter: %s\n", keyDigits.ReplaceAllLiteralString(line, "…"))
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyporter",
		Short: "API keys for Envoy",
		Long: `API keys for Envoy: the service that Envoy asks about every request, and the commands
for plans, accounts, users and keys.

Every setting is a flag, an environment variable (--listen-grpc is KEYPORTER_LISTEN_GRPC) and
a line of the file given with --config (listen_grpc). A flag beats the environment, which beats
the file, which beats the default. ` + "`keyporter config show`" + ` lists the settings.

Exit status: 0 done, 1 refused or failed, 2 used wrongly.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usageArgs(knownCommand),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.String("config", "", "configuration `file` (YAML)")
	addFlags(flags, "database", "output")
	root.AddCommand(
		a.serveCommand(), a.demoCommand(), a.checkCommand(),
		a.planCommand(), a.accountCommand(), a.userCommand(), a.keyCommand(), a.sessionCommand(),
		a.envoyCommand(), a.sealCommand(), a.configCommand(),
		a.migrateCommand(), a.healthcheckCommand(), a.versionCommand(),
	)
	strictDefaults(root)
	completeValues(root)
	return root
}

// completeValues lets the shell complete what a setting may be, and offer files only where one is
// wanted.
func completeValues(cmd *cobra.Command) {
	values := map[string][]string{}
	for _, s := range settings {
		values[s.name] = s.enum
	}
	cmd.NonInheritedFlags().VisitAll(func(flag *pflag.Flag) {
		if flag.Name == "config" || strings.HasSuffix(flag.Name, "-file") {
			return
		}
		// The only error is that of a flag that enumFlag completes already.
		_ = cmd.RegisterFlagCompletionFunc(flag.Name, cobra.FixedCompletions(values[flag.Name], cobra.ShellCompDirectiveNoFileComp))
	})
	if cmd.ValidArgsFunction == nil && !strings.Contains(cmd.Use, "FILE") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		completeValues(sub)
	}
}

// strictDefaults makes cobra's own commands refuse what they do not know, as ours do.
func strictDefaults(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = usageArgs(knownTopic)
		case "completion":
			cmd.Args, cmd.RunE = usageArgs(knownCommand), missingCommand
			for _, shell := range cmd.Commands() {
				shell.Args = usageArgs(cobra.NoArgs)
			}
		}
	}
}

// knownTopic refuses help about a command that does not exist.
func knownTopic(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	if err != nil {
		return err
	}
	return knownCommand(found, rest)
}

// knownCommand refuses what is none of the commands below cmd, and suggests the nearest.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var known []string
	for _, sub := range cmd.Commands() {
		known = append(known, sub.Name())
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), nearest(args[0], known))
}

// flagError makes a wrong flag a usage error, and suggests the nearest.
func flagError(cmd *cobra.Command, err error) error {
	unknown := (*pflag.NotExistError)(nil)
	if !errors.As(err, &unknown) {
		return usageError{err}
	}
	var known []string
	cmd.Flags().VisitAll(func(flag *pflag.Flag) { known = append(known, "--"+flag.Name) })
	return usageError{fmt.Errorf("%w%s", err, nearest("--"+unknown.GetSpecifiedName(), known))}
}

// group is a command that only has others below it.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{
		Use: use, Short: short, Args: usageArgs(knownCommand), RunE: missingCommand,
	}
	g.AddCommand(commands...)
	return g
}

func missingCommand(cmd *cobra.Command, _ []string) error {
	return usageError{fmt.Errorf("%s: a command is missing: see `%[1]s --help`", cmd.CommandPath())}
}

// usageArgs makes the complaint about wrong arguments a usage error that shows the right ones.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// exactly wants the arguments that use names.
func exactly(n int) cobra.PositionalArgs { return usageArgs(cobra.ExactArgs(n)) }

// withStore loads the configuration, opens the database that is there, and calls f.
func (a *app) withStore(cmd *cobra.Command, f func(context.Context, config, *store.DB) error) error {
	c, err := a.load(cmd)
	if err != nil {
		return err
	}
	db, err := store.Open(cmd.Context(), store.Config{URL: c.Database})
	if err != nil {
		return err
	}
	defer db.Close()
	return f(cmd.Context(), c, db)
}

// print shows a result, as JSON or as text.
func (a *app) print(c config, value any, text string) error {
	if c.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(value)
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// confirmed separates a change that was made but not confirmed, whose result must still be shown,
// from one that failed.
func confirmed(err error) (failed, unconfirmed error) {
	if errors.Is(err, store.ErrUnconfirmed) {
		return nil, err
	}
	return err, nil
}

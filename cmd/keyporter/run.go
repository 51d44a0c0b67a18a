package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/internal/service"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1 // rejected or failed
	exitUsage  = 2 // used wrongly
)

// usageError is a mistake in a command line or a configuration.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errRefused ends a command with status 1 after it has printed everything on standard output.
var errRefused = errors.New("refused")

// app is one run of the program.
type app struct {
	stdout, stderr io.Writer
	environ        []string
	signals        *signals        // nil: the caller handles signals
	foreign        *apikey.Foreign // keys of other systems, which must not be printed
}

// run runs the command that args name and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return (&app{stdout: stdout, stderr: stderr, environ: os.Environ()}).run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	defer a.makeVisible()()
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := advised(root.ExecuteContext(ctx))
	switch usage := (usageError{}); {
	case err == nil:
		return exitDone
	case errors.Is(err, errRefused):
		return exitFailed
	case errors.As(err, &usage), operations.KindOf(err) == operations.Invalid:
		a.complain(err)
		fmt.Fprintln(a.stderr, "Run `keyporter help` or `keyporter COMMAND --help` for what there is.")
		return exitUsage
	}
	if why := (endedBy{}); errors.As(context.Cause(ctx), &why) {
		err = fmt.Errorf("%w: %w", why, err)
	}
	a.complain(err)
	return exitFailed
}

// keyDigits matches the digits after the prefix of a key or a session.
var keyDigits = regexp.MustCompile(`[0-9a-f]{48,}`)

// complain prints an error, or several, one line each. It masks keys: a user may pass a key in
// place of a name, for example to revoke a leaked one, and it must not get into the log.
func (a *app) complain(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(a.stderr, "keyporter: %s\n", a.foreign.Masked(keyDigits.ReplaceAllLiteralString(line, "…")))
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyporter",
		Short: "API keys for Envoy",
		Long: `API keys for Envoy: the service that Envoy asks about every request, and the commands
that manage plans, accounts, users and keys.

Every setting is a flag, an environment variable (--listen-grpc is KEYPORTER_LISTEN_GRPC) and
a line of the file given with --config (listen_grpc). A flag beats the environment, which beats
the file, which beats the default. ` + "`keyporter config show`" + ` lists the settings.

With --server and --token-file, commands on plans, accounts, users, keys, sessions, credits, usage,
replicas and the audit work on a running service, by its API, and need no database.

Exit status: 0 done, 1 refused or failed, 2 used wrongly.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usageArgs(knownCommand),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Version:       service.BuildVersion().String(),

		PersistentPreRun: func(cmd *cobra.Command, _ []string) { a.signals.endAtHangup(cmd.Name()) },
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.String("config", "", "configuration `file` in YAML ("+config.VariablePrefix+"CONFIG)")
	config.AddFlags(flags, "database", "server", "token-file", "ca-file", "insecure", "output")
	root.AddCommand(
		a.serveCommand(), a.demoCommand(), a.initCommand(), a.checkCommand(),
		a.planCommand(), a.accountCommand(), a.userCommand(), a.keyCommand(), a.sessionCommand(),
		a.creditsCommand(), a.usageCommand(), a.ledgerCommand(), a.auditCommand(), a.eventsCommand(), a.replicasCommand(), a.drillCommand(), a.importCommand(), a.exportCommand(),
		a.envoyCommand(), a.sealCommand(), a.configCommand(),
		a.migrateCommand(), a.healthcheckCommand(), a.versionCommand(),
	)
	strictDefaults(root)
	completeValues(root)
	refuseEmptyOf(root)
	return root
}

// completeValues lets the shell complete what a setting may be, and offer files only where one is
// wanted.
func completeValues(cmd *cobra.Command) {
	values := map[string][]string{}
	for _, s := range config.Settings() {
		values[s.Name] = s.Enum
	}
	cmd.NonInheritedFlags().VisitAll(func(flag *pflag.Flag) {
		if flag.Name == "config" || strings.HasSuffix(flag.Name, "-file") {
			return
		}
		// The only possible error is a flag that enumFlag already completes.
		_ = cmd.RegisterFlagCompletionFunc(flag.Name, cobra.FixedCompletions(values[flag.Name], cobra.ShellCompDirectiveNoFileComp))
	})
	if cmd.ValidArgsFunction == nil && !strings.Contains(cmd.Use, "FILE") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		completeValues(sub)
	}
}

// strictDefaults makes cobra's own commands reject unknown arguments, as ours do.
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

// knownTopic rejects help about an unknown command.
func knownTopic(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	if err != nil {
		return err
	}
	return knownCommand(found, rest)
}

// knownCommand rejects an unknown subcommand of cmd, and suggests the nearest.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var known []string
	for _, sub := range cmd.Commands() {
		known = append(known, sub.Name())
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), routes.Nearest(args[0], known))
}

// flagError turns a wrong flag into a usage error, and suggests the nearest.
func flagError(cmd *cobra.Command, err error) error {
	unknown := (*pflag.NotExistError)(nil)
	if !errors.As(err, &unknown) {
		return usageError{err}
	}
	if instead := config.Gone(unknown.GetSpecifiedName()); instead != "" {
		return usageError{fmt.Errorf("--%s: %s", unknown.GetSpecifiedName(), instead)}
	}
	var known []string
	cmd.Flags().VisitAll(func(flag *pflag.Flag) { known = append(known, "--"+flag.Name) })
	return usageError{fmt.Errorf("%w%s", err, routes.Nearest("--"+unknown.GetSpecifiedName(), known))}
}

// refuseEmptyOf makes a command and all its subcommands reject empty values.
func refuseEmptyOf(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := refuseEmpty(cmd, args); err != nil {
				return err
			}
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		refuseEmptyOf(sub)
	}
}

// refuseEmpty rejects empty values, such as those of unset shell variables. Most flags and names
// have another meaning when they are absent.
func refuseEmpty(cmd *cobra.Command, args []string) error {
	if slices.Contains(args, "") {
		return usageError{fmt.Errorf("an argument is empty: is a variable not set?\nusage: %s", cmd.UseLine())}
	}
	var problems []error
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		values := []string{flag.Value.String()}
		if several, ok := flag.Value.(pflag.SliceValue); ok {
			values = several.GetSlice()
		}
		if flag.Annotations[config.MayBeEmpty] == nil && (len(values) == 0 || slices.Contains(values, "")) {
			problems = append(problems, fmt.Errorf("--%s: the value is empty: is a variable not set? Leave the flag out, or give it a value", flag.Name))
		}
	})
	if err := errors.Join(problems...); err != nil {
		return usageError{err}
	}
	return nil
}

// group is a command that has only subcommands.
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

// usageArgs turns an error about arguments into a usage error that shows the right ones.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// exactly requires n arguments, as listed in use.
func exactly(n int) cobra.PositionalArgs { return usageArgs(cobra.ExactArgs(n)) }

// load returns the effective configuration of a command: flag over environment over file over
// default. A mistake in any of them, including those that more finds, is a usage error.
func (a *app) load(cmd *cobra.Command, more ...func(*config.Config) error) (config.Config, error) {
	c, err := config.UnlessEnded(cmd.Context(), func() (config.Config, error) { return a.loadAgain(cmd, more...) })
	if err == nil {
		a.foreign = c.Routes.Foreign()
	}
	return c, err
}

// loadAgain is load without its end at ctx: the reloader bounds its own reads.
func (a *app) loadAgain(cmd *cobra.Command, more ...func(*config.Config) error) (config.Config, error) {
	values, problems := config.Variables(a.environ)
	file, err := config.FileName(cmd.Flags(), values)
	c, err := config.Sources{Flags: cmd.Flags(), Variables: values, File: file, Problems: append(problems, err)}.Read(more...)
	if err != nil {
		return config.Config{}, usageError{err}
	}
	if c.Server != "" {
		return c, hasRemoteForm(cmd)
	}
	return c, nil
}

// withStore loads the configuration, opens the existing database, and calls f.
func (a *app) withStore(cmd *cobra.Command, f func(context.Context, config.Config, *store.DB) error) error {
	c, err := a.load(cmd)
	if err != nil {
		return err
	}
	return a.withStoreOf(cmd, c, f)
}

// withStoreOf is withStore with a configuration that is loaded already.
func (a *app) withStoreOf(cmd *cobra.Command, c config.Config, f func(context.Context, config.Config, *store.DB) error) error {
	db, err := store.Open(cmd.Context(), store.Config{URL: c.Database, Connections: c.DatabaseConnections, Notice: a.notice})
	if err != nil {
		return err
	}
	defer db.Close()
	return f(cmd.Context(), c, db)
}

// print prints a result as JSON or as text.
func (a *app) print(c config.Config, value any, text string) error {
	var err error
	if c.Output == "json" {
		err = json.NewEncoder(a.stdout).Encode(value)
	} else {
		_, err = io.WriteString(a.stdout, text)
	}
	if err != nil {
		return writeError{err}
	}
	return nil
}

// writeError is a failed write to standard output.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// printChange prints a change that was made, as JSON or as text, and the number of replicas on
// standard error. An unconfirmed change is printed as well, and the command then fails.
func printChange[T any](a *app, c config.Config, done operations.Committed[T], text string) error {
	if err := a.print(c, done, text); err != nil {
		return err
	}
	if done.Unconfirmed != nil {
		return notConfirmed(done.Unconfirmed)
	}
	if c.Output != "json" {
		fmt.Fprintf(a.stderr, "enforced on %s\n", inWords(done.Confirmation))
	}
	return nil
}

// notConfirmed explains what to do about an unconfirmed change. A regeneration repeated with a new
// idempotency key would revoke the key just made.
func notConfirmed(err error) error {
	return fmt.Errorf("%w: the change was made, and each replica enforces it once it has applied it or lost its lease: to wait again, "+
		"repeat the command with the same --idempotency-key; without one, see in `keyporter replicas` when no replica lags", err)
}

func inWords(done feed.Confirmation) string {
	took := done.Took.Round(100 * time.Microsecond)
	switch {
	case done.Total == 0:
		return fmt.Sprintf("every replica: none is running (%v)", took)
	case done.Expired == 0:
		return fmt.Sprintf("%d of %d replicas (%v)", done.Acknowledged, done.Total, took)
	}
	return fmt.Sprintf("%d of %d replicas; %d more did not answer before their lease ended, and decide nothing until they have applied the change (%v)",
		done.Acknowledged, done.Total, done.Expired, took)
}

// onceFlag adds --idempotency-key.
func onceFlag(cmd *cobra.Command) {
	cmd.Flags().String("idempotency-key", "", "any `text`: repeating the command with the same text changes nothing and waits for confirmation again")
}

func once(cmd *cobra.Command) feed.IdempotencyKey {
	return feed.IdempotencyKey(cmd.Flags().Lookup("idempotency-key").Value.String())
}

// Bench runs Keyporter beside an empty gRPC server, on this machine, in one run, and prints one
// table with the cost of each answer: directly, and through a real Envoy. See the README in this
// folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the values of the flags.
type options struct {
	plan      plan
	write     string
	keyporter string
	opa       string
	peas      string
	only      string
	profile   string
	json      string
	grow      bool
	costs     bool
	growth    growthPlan
}

// plan is how often and how long each row is measured.
type plan struct {
	rounds int
	warm   time.Duration // uncounted load
	load   time.Duration // counted load
	alone  time.Duration // one request at a time
	users  int           // on a plan with high limits, each with a key
	crowd  int           // users at 60 requests a minute, each with a key
	// postgres selects PostgreSQL in place of an embedded SQLite.
	postgres bool
}

var (
	longPlan  = plan{rounds: 5, warm: 300 * time.Millisecond, load: 1500 * time.Millisecond, alone: 400 * time.Millisecond, users: 64}
	shortPlan = plan{rounds: 1, warm: 20 * time.Millisecond, load: 100 * time.Millisecond, alone: 20 * time.Millisecond, users: 2}
)

func parseFlags(args []string, problems io.Writer) (options, error) {
	o := options{plan: longPlan, growth: longGrowth}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(problems)
	short := flags.Bool("short", false, "only see that everything works; the figures mean nothing")
	flags.IntVar(&o.plan.rounds, "rounds", longPlan.rounds, "how often each row is measured; the table shows medians")
	flags.DurationVar(&o.plan.load, "load", longPlan.load, "how long each row is under load in one round")
	flags.IntVar(&o.plan.users, "users", longPlan.users, "how many `users` ask, each at most 10,000 times a second")
	flags.IntVar(&o.plan.crowd, "crowd", 0, "measure only so many `users` at 60 requests a minute, beside the yardsticks")
	flags.BoolVar(&o.plan.postgres, "postgres", false, "keep users, keys and credits in a PostgreSQL, in place of an embedded SQLite")
	flags.StringVar(&o.json, "json", "", "also write all samples into this `file`")
	flags.StringVar(&o.write, "write", "", "also write the table into this `file`, between its markers "+tableMarkers.start+" and "+tableMarkers.end)
	flags.StringVar(&o.keyporter, "keyporter", "", "measure this `binary` instead of building one from the checkout")
	flags.StringVar(&o.opa, "opa", "", "also measure this `binary` of opa-envoy-plugin, with a policy that knows keys and nothing else")
	flags.StringVar(&o.peas, "peas", "", "also measure this `binary` of path-external-auth-server, with a PostgreSQL of its own")
	flags.StringVar(&o.only, "only", "", "measure only rows whose name contains this `text`, and the yardsticks; with --growth only such scenes: "+sceneNames())
	flags.StringVar(&o.profile, "profile", "", "measure nothing: put CPU profiles of the hit path into this `folder`")
	flags.BoolVar(&o.grow, "growth", false, "measure instead what changes when things grow: its own table, between "+growthMarkers.start+" and "+growthMarkers.end)
	flags.BoolVar(&o.costs, "costs", false, "measure instead what each part of an answer costs Envoy: its own table, between "+costMarkers.start+" and "+costMarkers.end)
	cached := flags.Int("cached", slices.Max(longGrowth.cached), "with --growth: the largest `number` of keys in memory")
	active := flags.Int("active", slices.Max(longGrowth.active), "with --growth: the largest `number` of users active at once")
	stored := flags.Int("stored", slices.Max(longGrowth.database), "with --growth: the largest `number` of keys in the database; 10000000 takes a quarter of an hour more")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("%s is no flag, and there are no other arguments", flags.Arg(0))
	}
	for _, binary := range []*string{&o.keyporter, &o.opa, &o.peas} {
		if *binary == "" {
			continue
		}
		absolute, err := filepath.Abs(*binary) // programs are started in another folder
		if err != nil {
			return options{}, err
		}
		*binary = absolute
	}
	o.growth.rounds, o.growth.load = o.plan.rounds, o.plan.load
	o.growth.cached, o.growth.active = upTo(*cached), upTo(*active)
	o.growth.database = []int{longGrowth.database[0], *stored}
	if *short {
		users, postgres := o.plan.crowd, o.plan.postgres
		o.plan, o.growth = shortPlan, shortGrowth
		o.plan.crowd, o.plan.postgres = users, postgres
	}
	if (o.opa != "" || o.peas != "") && (o.plan.crowd > 0 || o.grow || o.profile != "") {
		return options{}, errors.New("--opa and --peas are rows of the table of few users: leave out --crowd, --growth and --profile")
	}
	if o.plan.rounds < 1 || o.plan.load <= 0 {
		return options{}, errors.New("--rounds and --load must be more than nothing")
	}
	return o, nil
}

// run starts everything, measures, prints the table and stops everything, also if ctx ends early.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	options, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	progress := func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }

	if options.grow {
		progress("building the programs")
		return runGrowth(ctx, options, stdout, progress)
	}
	if options.costs {
		return runCosts(ctx, options, stdout, progress)
	}
	progress("building and starting the servers")
	lab, err := startLab(ctx, options)
	if err != nil {
		return err
	}
	defer lab.stop()

	if options.profile != "" {
		return lab.writeProfiles(ctx, options.profile)
	}
	rows := chosen(lab.rows(), options.only)
	if err := measureAll(ctx, rows, options.plan, progress); err != nil {
		return err
	}
	if options.json != "" {
		if err := writeJSON(options.json, rows, lab.machine); err != nil {
			return err
		}
	}
	most, err := memory(lab.keyporter.pid, memoryMost)
	if err != nil {
		return err
	}
	table := render(rows, lab.machine) + fmt.Sprintf("Keyporter took at most %.0f MB of memory.\n", most/1e6) + leftOut(options)
	if _, err := io.WriteString(stdout, table); err != nil {
		return err
	}
	if options.write == "" {
		return nil
	}
	return writeTable(options.write, tableMarkers, table)
}

// findPrograms returns an error if a required program is missing.
func (o options) findPrograms() error {
	if _, err := parts.FindEnvoy(); err != nil {
		return err
	}
	for flag, binary := range map[string]string{"--keyporter": o.keyporter, "--opa": o.opa, "--peas": o.peas} {
		if binary == "" {
			continue
		}
		if _, err := exec.LookPath(binary); err != nil {
			return fmt.Errorf("%s wants a program: %w", flag, err)
		}
	}
	if o.plan.postgres || o.peas != "" {
		_, err := parts.FindPostgres(18) // the default of StartPostgres
		return err
	}
	return nil
}

// leftOut reports the other authorizers that are not in the table, and why. It returns "" if all
// are, and in a run with many users, which never includes them.
func leftOut(o options) string {
	if o.plan.crowd > 0 {
		return ""
	}
	var missing []string
	if o.opa == "" {
		missing = append(missing, "opa-envoy-plugin (--opa)")
	}
	if o.peas == "" {
		missing = append(missing, "path-external-auth-server (--peas)")
	}
	if len(missing) == 0 {
		return ""
	}
	return "Left out, as no binary was given: " + strings.Join(missing, ", ") + ".\n"
}

// chosen returns the rows with text in their name, and the yardsticks.
func chosen(rows []*row, text string) []*row {
	var some []*row
	for _, r := range rows {
		if r.yardstick || strings.Contains(r.name(), text) {
			some = append(some, r)
		}
	}
	return some
}

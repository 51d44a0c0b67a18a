package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
)

// maxProblems is the number of problems of an import that are printed.
const maxProblems = 100

func (a *app) importCommand() *cobra.Command {
	var options directory.ImportOptions
	var format, several string
	cmd := &cobra.Command{
		Use: "import FILE|-", Short: "Add plans, accounts, users and keys of another system from a file", Args: exactly(1),
		Long: `Add plans, accounts, users and keys of another system from a file, or from standard input (-): CSV with a
header, or a JSON object on each line. What is in the database stays as it is, so an import can be
repeated, and a service that runs follows it. The columns are described in docs/import.md:

  ` + strings.Join(operations.ImportColumns, ", ") + `

Every problem is printed with its line and column, at most ` + strconv.Itoa(maxProblems) + ` of them. If there is any, nothing is imported;
with --partial the other lines are.

A user has one live key. --several-keys service-users makes a service user NAME.2, NAME.3 and so on of
the same account for each further one, in the order of the file.`,
		Example: "  keyporter import users.csv --dry-run\n  keyporter import users.jsonl --several-keys service-users\n  pg_dump-of-yours | keyporter import - --format csv",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operateHere(cmd, func(ctx context.Context, c config.Config, by operations.Operator) error {
				asJSON, err := isJSON(args[0], format)
				if err != nil {
					return usageError{err}
				}
				if options.Several = several == "service-users"; !options.Several && several != "refuse" {
					return usageError{fmt.Errorf("--several-keys: %q: want refuse or service-users", several)}
				}
				return a.importFile(ctx, c, by, args[0], operations.Import{JSON: asJSON, Foreign: c.Routes.Foreign(), ImportOptions: options})
			})
		},
	}
	cmd.Flags().BoolVar(&options.DryRun, "dry-run", false, "check everything, and change nothing")
	cmd.Flags().BoolVar(&options.Partial, "partial", false, "import the lines without problems")
	cmd.Flags().StringVar(&format, "format", "", "`format` of the file: csv or jsonl; else its name ends with it")
	cmd.Flags().StringVar(&several, "several-keys", "refuse", "further live `keys` of one user: refuse, or service-users")
	return cmd
}

// isJSON reports whether a file has JSON in its lines, and not CSV.
func isJSON(file, format string) (bool, error) {
	if format == "" {
		format = strings.TrimPrefix(strings.ToLower(filepath.Ext(file)), ".")
	}
	switch format {
	case "csv":
		return false, nil
	case "jsonl", "ndjson":
		return true, nil
	}
	return false, errors.New("the name of the file ends neither with .csv nor with .jsonl: say --format csv or --format jsonl")
}

func (a *app) importFile(ctx context.Context, c config.Config, by operations.Operator, file string, in operations.Import) error {
	var size int64
	source := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		source = f
	}
	progress := &progress{in: source, size: size, out: a.stderr, terminal: isTerminal(os.Stderr), began: time.Now(), told: time.Now()}
	problems := 0
	in.From, in.Problem = progress, func(p directory.ImportProblem) {
		if problems++; problems <= maxProblems {
			progress.clear()
			fmt.Fprintf(a.stderr, "%s:%d:%d: %s\n", file, p.Line, p.Column, a.foreign.Masked(keyDigits.ReplaceAllLiteralString(p.Text, "…")))
		}
	}
	done, err := by.Import(ctx, in)
	progress.clear()
	if problems > maxProblems {
		fmt.Fprintf(a.stderr, "… and %d more problems\n", problems-maxProblems)
	}
	if errors.Is(err, directory.ErrProblems) {
		return fmt.Errorf("%d problems in %s: %w", done.Result.Problems, file, err)
	}
	if err != nil {
		return err
	}
	text := importedText(done.Result, in, time.Since(progress.began))
	if in.DryRun {
		return a.print(c, done.Result, text)
	}
	return printChange(a, c, done, text)
}

func importedText(n directory.Imported, in operations.Import, took time.Duration) string {
	verb := "imported"
	if in.DryRun {
		verb = "would be imported"
	}
	text := fmt.Sprintf("%d lines read in %v; %s: %d plans, %d accounts, %d users, %d keys; the rest was there\n",
		n.Rows, took.Round(100*time.Millisecond), verb, n.Plans, n.Accounts, n.Users, n.Keys)
	if in.Several {
		text += fmt.Sprintf("%d of the users are service users NAME.2, NAME.3 and so on, for further keys of one user\n", n.ServiceUsers)
	}
	if n.Sealed > 0 {
		text += fmt.Sprintf("%d of the keys can be shown on the users' page\n", n.Sealed)
	}
	if n.Credited > 0 {
		text += fmt.Sprintf("the credits used so far were taken over for %d users\n", n.Credited)
	}
	if n.Problems > 0 {
		text += fmt.Sprintf("%d lines have problems and were left out\n", n.Problems)
	}
	return text
}

// progress passes a file on, and tells how much of it was read: on a terminal in a bar, else in a
// line now and then.
type progress struct {
	in          io.Reader
	size, read  int64 // size: 0 if unknown
	out         io.Writer
	terminal    bool
	shown       bool // a bar is shown
	began, told time.Time
}

const barWidth = 30

// Read implements [io.Reader].
func (p *progress) Read(b []byte) (int, error) {
	n, err := p.in.Read(b)
	p.read += int64(n)
	pause := 5 * time.Second
	if p.terminal {
		pause = 100 * time.Millisecond
	}
	if time.Since(p.told) >= pause {
		p.told = time.Now()
		p.tell()
	}
	return n, err
}

func (p *progress) tell() {
	took := time.Since(p.began).Round(time.Second)
	switch {
	case p.size == 0:
		fmt.Fprintf(p.out, "%s%d MiB read in %v%s", p.start(), p.read>>20, took, p.end())
	case p.terminal:
		done := int(min(barWidth, p.read*barWidth/p.size))
		fmt.Fprintf(p.out, "\r[%s%s] %d%% of %d MiB, %v ", strings.Repeat("#", done), strings.Repeat(".", barWidth-done), p.read*100/p.size, p.size>>20, took)
		p.shown = true
	default:
		fmt.Fprintf(p.out, "%d%% of %d MiB read in %v\n", p.read*100/p.size, p.size>>20, took)
	}
}

func (p *progress) start() string {
	if p.terminal {
		p.shown = true
		return "\r"
	}
	return ""
}

func (p *progress) end() string {
	if p.terminal {
		return " "
	}
	return "\n"
}

// clear removes the bar.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprintf(p.out, "\r%s\r", strings.Repeat(" ", 78))
		p.shown = false
	}
}

func (a *app) exportCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "export", Short: "Print plans, accounts and users in the form that import reads, without keys", Args: exactly(0),
		Example: "  keyporter export > users.csv\n  keyporter export --format jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := isJSON("", format)
			if err != nil {
				return usageError{err}
			}
			return a.operateHere(cmd, func(ctx context.Context, c config.Config, by operations.Operator) error {
				asJSON := asJSON || c.Output == "json"
				write := writeCSV(a.stdout)
				if asJSON {
					encoder := json.NewEncoder(a.stdout)
					write = func(row *operations.Exported) error {
						if row == nil {
							return nil
						}
						return encoder.Encode(row)
					}
				}
				for row, err := range by.Export(ctx) {
					if err != nil {
						return err
					}
					if err := write(&row); err != nil {
						return writeError{err}
					}
				}
				if err := write(nil); err != nil {
					return writeError{err}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "csv", "`format` of the lines: csv or jsonl")
	return cmd
}

// writeCSV returns a function that writes a row as CSV, and with nil what it has kept.
func writeCSV(out io.Writer) func(*operations.Exported) error {
	w, begun := csv.NewWriter(out), false
	return func(r *operations.Exported) error {
		if !begun {
			begun = true
			if err := w.Write(operations.ImportColumns[:len(operations.ImportColumns)-3]); err != nil {
				return err
			}
		}
		if r == nil {
			w.Flush()
			return w.Error()
		}
		used := ""
		if r.Used > 0 {
			used = strconv.FormatInt(r.Used, 10)
		}
		return w.Write([]string{r.User, r.Kind, r.Status, r.Subject, r.Account, r.AccountKind, r.AccountStatus, r.Plan,
			strconv.FormatBool(r.APIAccess), r.RateLimit.String(), r.RateWindow, r.Credits.String(), r.Pool, used})
	}
}

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/internal/sealfile"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// Names of the files that init makes.
const (
	configName   = "keyporter.yaml"
	envoyName    = "envoy.yaml"
	databaseName = "keyporter.db"
	sealKeyName  = "seal.key"
)

// stageName is the folder in which init makes all files before it moves any into place.
const stageName = ".keyporter-init"

// Owner of the first key.
const firstPlan, firstAccount, firstUser = "standard", "me", "me"

//go:embed init.yaml.tmpl
var configText string

var configTemplate = template.Must(template.New("keyporter.yaml").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(configText))

// starter makes everything that guards an API: two configuration files and a database with a key.
type starter struct {
	Upstream, Prefix, Path, PagePath, Listen, Admin string // values of the flags
	GRPC, HTTP, Ops                                 string
	dir                                             string // absolute path
	rule                                            authz.Rule
}

func (a *app) initCommand() *cobra.Command {
	var s starter
	cmd := &cobra.Command{
		Use: "init", Short: "Guard an API of your own: write the configurations and make the first key",
		Long: `Guard an API of your own. Writes keyporter.yaml and, made from it, envoy.yaml; makes a SQLite database with
a plan, an account, a user and a key, and a seal key, which lets the page show the key again; then prints
how to start both programs, and a request that works. Asks nothing and overwrites nothing: if one of its
files exists, or anything goes wrong, it writes none.`,
		Example: "  keyporter init --upstream http://127.0.0.1:3000\n" +
			"  keyporter init --upstream http://127.0.0.1:3000 --dir guard --prefix sk_ --path '/v1/*'",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("server") {
				return hasRemoteForm(cmd)
			}
			c, err := a.ownSettings(cmd.Flags())
			s.GRPC, s.HTTP, s.Ops = cmd.Flag("listen-grpc").Value.String(), cmd.Flag("listen-http").Value.String(), cmd.Flag("listen-ops").Value.String()
			if err := errors.Join(err, s.check()); err != nil {
				return usageError{err}
			}
			key, err := s.run(cmd.Context())
			if err != nil {
				return err
			}
			return a.showStart(c, &s, key)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&s.Upstream, "upstream", "", "your API: HOST:PORT, http://HOST[:PORT], https://HOST[:PORT], h2c://HOST:PORT (gRPC) or unix:///PATH; needed")
	flags.StringVar(&s.dir, "dir", ".", "`folder` for the files; it is made if it is not there")
	flags.StringVar(&s.Prefix, "prefix", apikey.DefaultPrefix, "`text` that every key begins with")
	flags.StringVar(&s.Path, "path", "/*", "`path` that needs a key: /* for everything, /v1/* for all below /v1")
	flags.StringVar(&s.PagePath, "page-path", "/account/api", "`path` of the users' page")
	flags.StringVar(&s.Listen, "listen", "127.0.0.1:8080", "where Envoy takes requests: IP:PORT")
	flags.StringVar(&s.Admin, "admin", bootstrap.DefaultAdmin, "Envoy's admin interface: IP:PORT")
	config.AddFlags(flags, "listen-grpc", "listen-http", "listen-ops")
	return cmd
}

// ownSettings reads the settings that init shares with other commands. It rejects settings that
// would override the written file, since the printed commands would then behave differently.
func (a *app) ownSettings(flags *pflag.FlagSet) (config.Config, error) {
	values, problems := config.Variables(a.environ)
	for _, name := range []string{"config", "database", "database-file"} {
		if flags.Changed(name) {
			problems = append(problems, fmt.Errorf("--%s: init makes a new one, in the folder that --dir names", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name != config.VariablePrefix+"OUTPUT" {
			problems = append(problems, fmt.Errorf("environment variable %s: it would beat the file that init writes: unset it", name))
			delete(values, name)
		}
	}
	shared := &pflag.FlagSet{}
	for _, name := range []string{"output", "listen-grpc", "listen-http", "listen-ops"} {
		shared.AddFlag(flags.Lookup(name))
	}
	return config.Sources{Flags: shared, Variables: values, Problems: problems}.Read()
}

// check validates the flags.
func (s *starter) check() error {
	var problems []error
	wrong := func(flag string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("--%s: %w", flag, err))
		}
	}
	if s.Upstream == "" {
		wrong("upstream", errors.New("say where your API answers, such as --upstream http://127.0.0.1:3000"))
	} else {
		wrong("upstream", bootstrap.Upstream{URL: s.Upstream}.Problem())
	}
	wrong("prefix", config.CheckKeyPrefix(s.Prefix))
	for flag, address := range map[string]string{"listen": s.Listen, "admin": s.Admin} {
		if _, err := netip.ParseAddrPort(address); err != nil {
			wrong(flag, fmt.Errorf("%.80q is not of the form IP:PORT, such as 127.0.0.1:8080", address))
		}
	}
	if s.HTTP == "off" {
		wrong("listen-http", errors.New("the users' page is part of what init makes: leave the flag out"))
	}
	s.rule = authz.Rule{Path: s.Path, Kind: authz.KindAPIKey}
	_, err := authz.NewRouteTable([]authz.Rule{s.rule})
	wrong("path", err)
	pageErr := authz.CheckPagePath(s.PagePath)
	wrong("page-path", pageErr)
	if err == nil && pageErr == nil {
		wrong("path", s.apart())
	}
	if s.dir == "" {
		wrong("dir", errors.New("the name of the folder is empty"))
	}
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		wrong("dir", err)
	}
	return errors.Join(problems...)
}

// apart returns an error if the paths of the API and of the page overlap.
func (s *starter) apart() error {
	table, err := authz.NewRouteTable(authz.WithPage([]authz.Rule{s.rule}, s.PagePath))
	if err == nil {
		err = table.PageProblem(s.PagePath)
	}
	if err != nil {
		return fmt.Errorf("%s is in the way of the users' page: give that another --page-path than %s: %w", s.Path, s.PagePath, err)
	}
	return nil
}

// run makes everything or nothing, and returns the key.
func (s *starter) run(ctx context.Context) (key string, err error) {
	err = os.Mkdir(s.dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("--dir: %w", err)
	}
	made := err == nil
	unlock, err := sealfile.LockDirectory(s.dir)
	if errors.Is(err, sealfile.ErrLocked) {
		return "", fmt.Errorf("another init is at work in %s: wait until it is done", s.dir)
	}
	if err != nil {
		return "", fmt.Errorf("--dir: %w", err)
	}
	defer unlock.Close()
	defer func() {
		if err != nil && made {
			os.Remove(s.dir)
		}
	}()
	if err := errors.Join(s.clear(), s.vacant()); err != nil {
		return "", err
	}
	if err := os.Mkdir(s.staged(""), 0o700); err != nil {
		return "", fmt.Errorf("--dir: %w", err)
	}
	defer os.RemoveAll(s.staged(""))
	if err := s.writeConfigs(); err != nil {
		return "", err
	}
	if key, err = s.makeDatabase(ctx); err != nil {
		return "", err
	}
	return key, s.publish()
}

func (s *starter) file(name string) string   { return filepath.Join(s.dir, name) }
func (s *starter) staged(name string) string { return filepath.Join(s.dir, stageName, name) }

// vacant returns an error that names the files that already exist.
func (s *starter) vacant() error {
	var there []string
	for _, name := range []string{configName, envoyName, databaseName, databaseName + "-wal", databaseName + "-shm", sealKeyName} {
		if _, err := os.Lstat(s.file(name)); err == nil {
			there = append(there, name)
		}
	}
	if len(there) == 0 {
		return nil
	}
	advice := "name another folder with --dir, or move them away first"
	if slices.Contains(there, configName) {
		advice = fmt.Sprintf("start what is there with `%s`, name another folder with --dir, or move them away first", s.serve())
	}
	return fmt.Errorf("in %s there is %s already, and init overwrites nothing, so that nothing was changed: %s", s.dir, strings.Join(there, ", "), advice)
}

// writeConfigs writes both configurations. It derives Envoy's from the settings read back from
// Keyporter's.
func (s *starter) writeConfigs() error {
	var text strings.Builder
	if err := configTemplate.Execute(&text, s); err != nil {
		return err
	}
	if err := os.WriteFile(s.staged(configName), []byte(text.String()), 0o644); err != nil {
		return err
	}
	c, err := config.Sources{Flags: &pflag.FlagSet{}, File: s.staged(configName)}.Read((*config.Config).CheckPage)
	if err != nil {
		return usageError{err}
	}
	printed, err := bootstrap.YAML(bootstrap.Config{
		ConfigFile: s.file(configName), Routes: c.Routes, Upstreams: c.Upstreams,
		Authz: c.ListenGRPC, Page: c.ListenHTTP, Listen: s.Listen, Admin: s.Admin,
	})
	if err != nil {
		return usageError{err}
	}
	return os.WriteFile(s.staged(envoyName), printed, 0o644)
}

// makeDatabase creates the database with one user, and returns the user's key.
func (s *starter) makeDatabase(ctx context.Context) (string, error) {
	db, err := store.Open(ctx, store.Config{URL: "sqlite://" + s.staged(databaseName), Create: true, Migrate: true})
	if err != nil {
		return "", err
	}
	defer db.Close()
	by := operations.By(commandActor(), db)
	if err := by.Seal().Init(ctx, s.staged(sealKeyName)); err != nil {
		return "", err
	}
	plan, account := firstPlan, firstAccount
	withPlan, err1 := by.Plans().Set(ctx, plan, directory.PlanChange{}, "")
	withAccount, err2 := by.Accounts().Set(ctx, account, directory.AccountChange{Plan: &plan}, "")
	withUser, err3 := by.Users().Set(ctx, firstUser, directory.UserChange{Account: &account}, "")
	if err := errors.Join(err1, err2, err3, withPlan.Unconfirmed, withAccount.Unconfirmed, withUser.Unconfirmed); err != nil {
		return "", err
	}
	made, err := by.Keys(s.Prefix).Create(ctx, firstUser, "")
	if err := errors.Join(err, made.Unconfirmed); err != nil {
		return "", err
	}
	return *made.Result.Key, nil
}

// publish moves all files into place, or none. Hard links never overwrite a file, and let clear
// recognise the files that are in place if the program is killed here.
func (s *starter) publish() error {
	files, err := os.ReadDir(s.staged(""))
	if err != nil {
		return err
	}
	for i, file := range files {
		if err := os.Link(s.staged(file.Name()), s.file(file.Name())); err != nil {
			for _, placed := range files[:i] {
				os.Remove(s.file(placed.Name()))
			}
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	return nil
}

// clear removes the files of an init that was killed: those that are still staged, and those in
// place unless all of them are.
func (s *starter) clear() error {
	files, err := os.ReadDir(s.staged(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	var placed []string
	for _, file := range files {
		staged, err := os.Lstat(s.staged(file.Name()))
		if err != nil {
			return err
		}
		if there, err := os.Lstat(s.file(file.Name())); err == nil && os.SameFile(there, staged) {
			placed = append(placed, s.file(file.Name()))
		}
	}
	if len(placed) < len(files) {
		for _, file := range placed {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(s.staged(""))
}

// Values for the template of keyporter.yaml.

func (s *starter) Database() string { return "sqlite://" + s.file(databaseName) }
func (s *starter) SealKey() string  { return s.file(sealKeyName) }
func (s *starter) Routes() string   { return routes.Format([]authz.Rule{s.rule}) }

// PageURL is the address at which users reach Envoy, if only this machine can; otherwise users need
// TLS and a host name, so it is "".
func (s *starter) PageURL() string {
	if address, err := netip.ParseAddrPort(s.Listen); err == nil && address.Addr().IsLoopback() {
		return "http://" + s.Listen
	}
	return ""
}

// The printed commands.

func (s *starter) serve() string {
	return calledAs() + " serve --config " + shellWord(s.file(configName))
}

// calledAs returns the command that calls this program again: its name, or its path if the user
// typed that.
func calledAs() string {
	if !strings.ContainsRune(os.Args[0], filepath.Separator) {
		return "keyporter"
	}
	path, err := filepath.Abs(os.Args[0])
	if err != nil {
		path = os.Args[0]
	}
	return shellWord(path)
}
func (s *starter) envoy() string { return "envoy --config-path " + shellWord(s.file(envoyName)) }
func (s *starter) link() string {
	return fmt.Sprintf("%s session create %s --link --config %s", calledAs(), firstUser, shellWord(s.file(configName)))
}

// curl returns a request that needs the key, addressed to Envoy as seen from this machine.
func (s *starter) curl(key string) string {
	host, port, _ := net.SplitHostPort(s.Listen) // check has validated it
	switch host {
	case "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return fmt.Sprintf("curl -i -H 'X-API-Key: %s' %s", key, shellWord("http://"+net.JoinHostPort(host, port)+s.rule.Example()))
}

// plainWord matches words that a shell leaves unchanged.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// shellWord quotes a word for a shell.
func shellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// started is the output of init.
type started struct {
	Config   string `json:"config"`
	Envoy    string `json:"envoy"`
	Database string `json:"database"`
	SealKey  string `json:"seal_key_file"`
	Plan     string `json:"plan"`
	Account  string `json:"account"`
	User     string `json:"user"`
	Key      string `json:"key"`
	Commands struct {
		Serve string `json:"serve"`
		Envoy string `json:"envoy"`
		Curl  string `json:"curl"`
		Link  string `json:"login_link"`
	} `json:"commands"`
}

// showStart prints the created files and the next commands.
func (a *app) showStart(c config.Config, s *starter, key string) error {
	result := started{
		Config: s.file(configName), Envoy: s.file(envoyName), Database: s.Database(), SealKey: s.SealKey(),
		Plan: firstPlan, Account: firstAccount, User: firstUser, Key: key,
	}
	result.Commands.Serve, result.Commands.Envoy, result.Commands.Curl, result.Commands.Link = s.serve(), s.envoy(), s.curl(key), s.link()
	page := "The user's page, where the key can be seen again and replaced: open the link that this prints:"
	if s.PageURL() == "" {
		page = "The user's page needs TLS in front of Envoy, and page_url in keyporter.yaml. Then open the link that this prints:"
	}
	text := fmt.Sprintf(`%s has
  %-15s the configuration of Keyporter: change it as you like
  %-15s that of Envoy, made from it
  %-15s the plan %s, and the user %s with a key
  %-15s with which the page shows the key again: keep it secret

Start both, each in a terminal of its own:

  %s
  %s

Then send a request with the key:

  %s

%s

  %s
`, s.dir, configName, envoyName, databaseName, firstPlan, firstUser, sealKeyName,
		s.serve(), s.envoy(), s.curl(key), page, s.link())
	if err := a.print(c, result, text); err != nil {
		return fmt.Errorf("the files were made, but the key could not be shown: %w: run `keyporter key regenerate %s --config %s`", err, firstUser, shellWord(s.file(configName)))
	}
	return nil
}

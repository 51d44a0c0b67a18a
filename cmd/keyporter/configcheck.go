package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
)

func (a *app) configCheckCommand() *cobra.Command {
	var connect bool
	cmd := &cobra.Command{
		Use: "check", Short: "Check the configuration, and print every mistake with file, line and column", Args: exactly(0),
		Long: `Check the configuration, and print every mistake with file, line and column. It also reads the files
that the configuration names: tokens, keys and the logo.

With --connect it also connects to the database, to Valkey and to the URL of --jwt-keys, and reports
missing rights and a wrong schema. It changes nothing.

If neither --redis nor --rate-limit-share is set and the database is reachable, several live replicas in
its list are a mistake, since they would divide every rate limit among them. Before the first replica
runs this cannot be seen; the log of each replica says it later.`,
		Example: "  keyporter config check --config keyporter.yaml\n  keyporter config check --config keyporter.yaml --connect",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd, (*config).checkPage, (*config).checkFiles)
			if usage := (usageError{}); errors.As(err, &usage) {
				return usage.err // the command line itself was valid
			}
			if err != nil {
				return err
			}
			if connect {
				err = c.connect(cmd.Context())
			}
			if err := errors.Join(err, checkShares(cmd.Context(), c)); err != nil {
				return err
			}
			c.warnings = append(c.warnings, c.looseFiles(othersRead|othersWrite)...)
			for _, warning := range c.warnings {
				fmt.Fprintln(a.stderr, "warning:", warning)
			}
			return a.print(c, struct {
				OK       bool     `json:"ok"`
				Warnings []string `json:"warnings"`
			}{true, append([]string{}, c.warnings...)}, "ok\n")
		},
	}
	cmd.Flags().BoolVar(&connect, "connect", false, "connect to the database, to Valkey and to the URL of --jwt-keys")
	addFlags(cmd.Flags(), ofService...)
	return cmd
}

// checkFiles reads every file that the service reads when it starts.
func (c *config) checkFiles() error {
	_, grpc := c.grpcToken()
	_, settle := c.settleToken()
	_, brand := c.brand()
	problems := []error{about("--database", store.CheckURLFiles(c.Database)), about("--grpc-token-file", grpc), about("--settle-token-file", settle), brand, c.checkJWTFile()}
	if c.SealKeyFile != "" {
		_, err := readSealKeys(c.SealKeyFile)
		problems = append(problems, about("--seal-key-file", err))
	}
	return errors.Join(problems...)
}

func about(setting string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", setting, err)
}

// checkJWTFile reads the token keys if they are in a file. Keys at a URL may arrive later.
func (c *config) checkJWTFile() error {
	if !c.JWT.FromFile() || c.checkJWT() != nil { // already reported
		return nil
	}
	return about("--jwt-keys", c.JWT.ReadKeys(context.Background()))
}

// connectTime bounds the attempt to connect to the database. Other connections have limits of their
// own.
const connectTime = 10 * time.Second

// connect contacts everything that the service depends on, and adds to the warnings.
func (c *config) connect(ctx context.Context) error {
	problems := []error{about("--database", c.connectDatabase(ctx))}
	if c.Redis != "" {
		warnings, err := ratelimit.CheckValkey(ctx, c.Redis)
		problems = append(problems, about("--redis", err))
		for _, warning := range warnings {
			c.warnings = append(c.warnings, "--redis: "+warning)
		}
	}
	if c.JWT.Keys != "" && !c.JWT.FromFile() {
		problems = append(problems, about("--jwt-keys", c.JWT.ReadKeys(ctx)))
	}
	return errors.Join(problems...)
}

// connectDatabase checks in the database everything without which a service refuses to start.
func (c *config) connectDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	db, err := store.Open(ctx, store.Config{URL: c.Database, Service: true, Connections: c.DatabaseConnections})
	if errors.Is(err, store.ErrUnrecorded) && c.Migrate {
		c.warnings = append(c.warnings, fmt.Sprintf("--database: the start of the service mends this, if it may: %v", err))
		return nil
	}
	if err != nil {
		return err
	}
	return db.Close()
}

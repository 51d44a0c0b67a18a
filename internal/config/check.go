package config

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/internal/sealfile"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// CheckFiles reads every file that the service reads when it starts.
func (c *Config) CheckFiles() error {
	_, grpc := c.GRPCToken()
	_, settle := c.SettleToken()
	_, admin := c.AdminTokens()
	_, webhooks := c.Webhooks()
	_, brand := c.Brand()
	problems := []error{about("--database", store.CheckURLFiles(c.Database)), about("--grpc-token-file", grpc), about("--settle-token-file", settle), about("--admin-tokens-file", admin), about("--webhooks-file", webhooks), brand, c.CheckJWTFile(), c.checkTLSFiles()}
	if c.SealKeyFile != "" {
		_, err := sealfile.Read(c.SealKeyFile)
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

// CheckJWTFile reads the token keys if they are in a file. Keys at a URL may arrive later.
func (c *Config) CheckJWTFile() error {
	if !c.JWT.FromFile() || c.checkJWT() != nil { // already reported
		return nil
	}
	return about("--jwt-keys", c.JWT.ReadKeys(context.Background()))
}

// connectTime bounds the attempt to connect to the database. Other connections have limits of their
// own.
const connectTime = 10 * time.Second

// Connect contacts everything that the service depends on, and adds to the warnings.
func (c *Config) Connect(ctx context.Context) error {
	problems := []error{about("--database", c.connectDatabase(ctx))}
	if c.Redis != "" {
		warnings, err := ratelimit.CheckValkey(ctx, c.Redis)
		problems = append(problems, about("--redis", err))
		for _, warning := range warnings {
			c.Warnings = append(c.Warnings, "--redis: "+warning)
		}
	}
	if c.JWT.Keys != "" && !c.JWT.FromFile() {
		problems = append(problems, about("--jwt-keys", c.JWT.ReadKeys(ctx)))
	}
	return errors.Join(problems...)
}

// connectDatabase checks in the database everything without which a service refuses to start.
func (c *Config) connectDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	db, err := store.Open(ctx, store.Config{URL: c.Database, Service: true, Connections: c.DatabaseConnections})
	if errors.Is(err, store.ErrUnrecorded) && c.Migrate {
		c.Warnings = append(c.Warnings, fmt.Sprintf("--database: the start of the service mends this, if it may: %v", err))
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(c.checkImported(ctx, db), db.Close())
}

// errFound ends a search.
var errFound = errors.New("found")

// checkImported warns of imported keys that no format describes.
func (c *Config) checkImported(ctx context.Context, db *store.DB) error {
	if len(c.KeyFormats) > 0 {
		return nil
	}
	err := directory.NewLookups(db).EachImported(ctx, "", func(uint64) error { return errFound })
	if errors.Is(err, errFound) {
		c.Warnings = append(c.Warnings, "key_formats: the database has imported keys, and without their form each is refused with 401")
		return nil
	}
	return err
}

// CheckShares rejects several replicas that divide rate limits among them by accident. If the
// number of replicas is not available, for example before the database exists, that is no mistake
// of the configuration.
func (c *Config) CheckShares(ctx context.Context) error {
	if c.Redis != "" || c.RateLimitShare {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	db, err := store.Open(ctx, store.Config{URL: c.Database})
	if err != nil {
		return nil
	}
	defer db.Close()
	live, err := feed.New(db).LiveReplicas(ctx)
	if err != nil || live < 2 {
		return nil
	}
	return fmt.Errorf("%d replicas are running, and without --redis each admits its share of every rate limit: set --redis for all of them, or --rate-limit-share if that is meant", live)
}

package feed

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// channel is the PostgreSQL channel on which changes are announced.
const channel = "keyporter"

// recalled is the announcement of a recall of credits.
const recalled = "credits"

// maxUpdates is the maximum number of changes that a replica follows one by one; if there are more,
// it forgets everything instead. As many are kept for replicas that were unreachable.
const maxUpdates = 10_000

// Replica describes the process that a [Registry] represents.
type Replica struct {
	Name    string        // of the machine
	Address string        // of its gRPC listener, where others can reach it
	Version string        // of the program
	Life    time.Duration // the TTL of its lease; [lease.DefaultLife] if 0
	Routes  string        // the hash of its route table, for others to see
	Log     *slog.Logger  // slog.Default() if nil
	// Recall is called when another process may want the credits that this one does not use; may be
	// nil.
	Recall func()
}

// Registry is the list of replicas in the database, for one of them. It implements
// [lease.Registry]. On its own connections, it gives up on a server that is silent for two renewal
// periods.
type Registry struct {
	db      *store.DB
	sql     statements
	replica Replica
	pool    *sql.DB
	silence time.Duration
	// id of a registration that may have been made; only Register uses it, one call at a time
	pending string
	current atomic.Pointer[string]
	routes  atomic.Pointer[string]
}

// NewRegistry returns the list of replicas in a database, for one of them.
func NewRegistry(db *store.DB, r Replica) (*Registry, error) {
	if r.Life == 0 {
		r.Life = lease.DefaultLife
	}
	if r.Log == nil {
		r.Log = slog.Default()
	}
	if r.Recall == nil {
		r.Recall = func() {}
	}
	registry := &Registry{db: db, sql: statementsOf(db), replica: r, silence: 2 * lease.Period(r.Life)}
	registry.routes.Store(&r.Routes)
	var err error
	if registry.pool, err = db.LeasePool(registry.silence); err != nil {
		return nil, fmt.Errorf("connecting for the lease: %w", err)
	}
	return registry, nil
}

// Close closes the connections.
func (r *Registry) Close() error { return r.pool.Close() }

// Register implements [lease.Registry]. Only one call may run at a time.
func (r *Registry) Register(ctx context.Context) (string, error) {
	if err := r.sameFile(); err != nil {
		return "", err
	}
	if r.pending == "" {
		r.pending = "replica_" + strings.ToLower(rand.Text()[:16])
	}
	id := r.pending
	err := r.committed(ctx, func(ctx context.Context, conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, r.sql.register, id, r.replica.Name, r.replica.Address, r.replica.Version, r.replica.Life.Milliseconds(), *r.routes.Load())
		return err
	})
	if err == nil {
		r.pending = ""
		r.current.Store(&id)
		r.replica.Recall() // so that the ledger learns the new name of this process
	}
	return id, err
}

// SetRoutes records on the list that the replica has another route table. The value is for display
// only: if the database does not answer, the next registration records it.
func (r *Registry) SetRoutes(ctx context.Context, hash string) {
	r.routes.Store(&hash)
	ctx, cancel := context.WithTimeout(ctx, r.silence)
	defer cancel()
	if _, err := r.pool.ExecContext(ctx, `UPDATE replicas SET routes = $1 WHERE id = $2`, hash, r.ID()); err != nil {
		r.replica.Log.Warn("the list of replicas goes on to show the old route table, although the new one is enforced", "error", err)
	}
}

// ID returns the id of the last registration on the list; "" before the first one.
func (r *Registry) ID() string {
	if id := r.current.Load(); id != nil {
		return *id
	}
	return ""
}

// Renew implements [lease.Registry].
func (r *Registry) Renew(ctx context.Context, id string, at lease.Position) (lease.Updates, error) {
	listed, updates, err := r.read(ctx, r.committed, r.sql.renew, int64(at.Epoch), at.ID, id)
	switch {
	case err == nil && listed < 0:
		if err = r.db.CheckTriggers(ctx, r.pool); err == nil {
			err = lease.ErrUnrecorded // they were enabled again just now
		}
	case err == nil && listed == 0:
		err = lease.ErrFenced
	}
	return updates, err
}

// Feed implements [lease.Registry].
func (r *Registry) Updates(ctx context.Context, at lease.Position) (lease.Updates, error) {
	_, updates, err := r.read(ctx, r.on, r.sql.updates, int64(at.Epoch), at.ID)
	return updates, err
}

func (r *Registry) read(ctx context.Context, on func(context.Context, func(context.Context, *sql.Conn) error) error, query string, args ...any) (listed int, updates lease.Updates, err error) {
	if err := r.sameFile(); err != nil {
		return 0, lease.Updates{}, err
	}
	err = on(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		listed, updates, err = readUpdates(ctx, conn, query, args...)
		return err
	})
	if err == nil {
		err = r.sameFile() // data read after the file was replaced is worthless
	}
	return listed, updates, err
}

func readUpdates(ctx context.Context, conn *sql.Conn, query string, args ...any) (listed int, updates lease.Updates, err error) {
	rows, err := conn.QueryContext(ctx, query, args...)
	if err != nil {
		return 0, lease.Updates{}, err
	}
	defer rows.Close()
	for rows.Next() {
		var accepted string
		var epoch sql.NullInt64
		var changeID, what sql.NullString
		if err := rows.Scan(&listed, &updates.Oldest, &updates.Newest.Epoch, &updates.Newest.ID, &updates.Known, &accepted,
			&epoch, &changeID, &what); err != nil {
			return 0, lease.Updates{}, err
		}
		updates.Accepted = strings.Fields(accepted)
		if epoch.Valid {
			position := lease.Position{Epoch: lease.Epoch(epoch.Int64), ID: changeID.String}
			updates.Changes = append(updates.Changes, lease.Change{Position: position, What: strings.Fields(what.String)})
		}
	}
	if err := rows.Err(); err != nil {
		return 0, lease.Updates{}, err
	}
	if updates.Newest.ID == "" {
		return 0, lease.Updates{}, errors.New("the table of changes is empty: somebody has deleted them")
	}
	return listed, updates, nil
}

// Ack implements [lease.Registry].
func (r *Registry) Ack(ctx context.Context, id string, at lease.Position, durably bool) error {
	statement := `UPDATE replicas SET acked = CASE WHEN acked < $2 THEN $2 ELSE acked END, seen_at = ` + r.db.Dialect.Now + `
		WHERE id = $1 AND EXISTS (SELECT 1 FROM changes WHERE epoch = $2 AND id = $3)`
	on := r.committed
	switch {
	case !durably:
		statement, on = statement+r.db.Dialect.Lazily, r.on
	case r.db.File() == "":
		statement += ` RETURNING ` + r.db.Dialect.Durable
	}
	var listed bool
	err := on(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		listed, err = store.Affected(conn.ExecContext(ctx, statement, id, int64(at.Epoch), at.ID))
		return err
	})
	if err == nil && !listed {
		err = lease.ErrFenced
	}
	return err
}

// Leave implements [lease.Registry].
func (r *Registry) Leave(ctx context.Context, id string) error {
	return r.on(ctx, func(ctx context.Context, conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, `DELETE FROM replicas WHERE id = $1`, id)
		return err
	})
}

// on runs f on a connection of the registry. A statement ends with its connection and is never
// cancelled: PostgreSQL reports success for a commit that is cancelled while it waits for a
// standby.
func (r *Registry) on(ctx context.Context, f func(context.Context, *sql.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.silence)
	defer cancel()
	err := r.connected(ctx, f)
	r.db.Count(ctx, store.ForLease, err)
	return err
}

func (r *Registry) connected(ctx context.Context, f func(context.Context, *sql.Conn) error) error {
	conn, err := r.pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(context.WithoutCancel(ctx), conn)
}

// committed is on for a write that must be durable.
func (r *Registry) committed(ctx context.Context, f func(context.Context, *sql.Conn) error) error {
	return r.db.Synced(func() error { return r.on(ctx, f) })
}

// sameFile fails once the file of a SQLite database is no longer the one that is open.
func (r *Registry) sameFile() error {
	err := r.db.SameFile()
	if errors.Is(err, store.ErrReplaced) {
		return fmt.Errorf("%w: %w; look at the keys, then start this process again", err, lease.ErrRewritten)
	}
	return err
}

// Watch calls hint whenever there may be updates, until ctx ends.
func (r *Registry) Watch(ctx context.Context, hint func(lease.Epoch)) {
	if r.db.File() != "" {
		r.watchFile(ctx, hint)
		return
	}
	r.listen(ctx, hint)
}

// listen watches a PostgreSQL database.
func (r *Registry) listen(ctx context.Context, hint func(lease.Epoch)) {
	probe := "probe " + rand.Text()
	arrived := make(chan struct{})
	echo := sync.OnceFunc(func() { close(arrived) }) // others can receive and repeat it
	r.db.Listen(ctx, channel, store.Listener{
		Silence: r.silence,
		Ready: func() {
			hint(0) // for changes before it
			r.probe(ctx, probe, arrived)
		},
		Missed: func() { hint(0) },
		OnNotice: func(payload string) {
			switch payload {
			case probe:
				echo()
			case recalled:
				r.replica.Recall()
			default:
				// A payload that is not a number is not ours and means nothing.
				epoch, _ := strconv.ParseInt(payload, 10, 64)
				if epoch > 0 {
					hint(lease.Epoch(epoch))
				}
			}
		},
	})
}

// probe warns the operator if announcements do not arrive.
func (r *Registry) probe(ctx context.Context, payload string, arrived <-chan struct{}) {
	_, err := r.pool.ExecContext(ctx, `SELECT pg_notify($1, $2)`, channel, payload)
	select {
	case <-arrived:
		return
	case <-time.After(max(2*time.Second, r.silence)):
	case <-ctx.Done():
		return
	}
	r.replica.Log.Warn("announcements of changes do not arrive, as behind a PgBouncer in transaction mode: changes are still enforced "+
		"everywhere when a command returns, but it waits for the next renewal of every lease; connect to PostgreSQL itself or in session mode",
		"renewal", lease.Period(r.replica.Life).String(), "error", err)
}

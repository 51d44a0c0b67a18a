package store

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

	"github.com/lib/pq"

	"github.com/keyporter/keyporter/store/lease"
)

// channel is the PostgreSQL channel on which changes are announced.
const channel = "keyporter"

// recalled is the announcement of a recall of credits.
const recalled = "credits"

// maxNews is the maximum number of changes that a replica follows one by one; if there are more, it
// forgets everything instead. As many are kept for replicas that were unreachable.
const maxNews = 10_000

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
	db      *DB
	replica Replica
	pool    *sql.DB
	silence time.Duration
	// id of a registration that may have been made; only Register uses it, one call at a time
	pending string
	current atomic.Pointer[string]
	routes  atomic.Pointer[string]
}

// Registry returns the list of replicas for one of them.
func (db *DB) Registry(r Replica) (*Registry, error) {
	if r.Life == 0 {
		r.Life = lease.DefaultLife
	}
	if r.Log == nil {
		r.Log = slog.Default()
	}
	if r.Recall == nil {
		r.Recall = func() {}
	}
	registry := &Registry{db: db, replica: r, silence: 2 * lease.Period(r.Life)}
	registry.routes.Store(&r.Routes)
	var err error
	if registry.pool, err = db.dialect.pool(leaseShare, registry.silence); err != nil {
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
		_, err := conn.ExecContext(ctx, r.db.dialect.register, id, r.replica.Name, r.replica.Address, r.replica.Version, r.replica.Life.Milliseconds(), *r.routes.Load())
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
		r.replica.Log.Warn("the list of replicas goes on to show the old route table, although the new one is in force", "error", err)
	}
}

// ID returns the id of the last registration on the list; "" before the first one.
func (r *Registry) ID() string {
	if id := r.current.Load(); id != nil {
		return *id
	}
	return ""
}

// registerPostgres and renewPostgres wait for the lock on their row for a quarter of the lease at
// most. An earlier statement whose commit waits for a standby may hold the lock: the server does
// not notice that its client has gone, and the following statements would occupy the connections
// one by one.
var registerPostgres = `WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', (CAST($5 AS BIGINT) / 4)::TEXT, true), ` + durable(true) + `)
	INSERT INTO replicas (id, name, address, version, life, routes, acked, started_at, seen_at)
	SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT), CAST($6 AS TEXT), -1, changes_now(), changes_now()
	FROM patience ON CONFLICT (id) DO UPDATE SET acked = replicas.acked`

const registerSQLite = `INSERT INTO replicas (id, name, address, version, life, routes, acked, started_at, seen_at)
	VALUES ($1, $2, $3, $4, $5, $6, -1, CAST(unixepoch('subsec') * 1000 AS INTEGER), CAST(unixepoch('subsec') * 1000 AS INTEGER))
	ON CONFLICT (id) DO NOTHING`

// news reads the changes after a position. Its parameters are the beginning of the statement,
// whether the replica is on the list (-1: changes are not recorded), the function that joins names,
// and the maximum number of changes.
const news = `%[1]s SELECT %[2]s, (SELECT min(epoch) FROM changes), newest.epoch, newest.id,
		EXISTS (SELECT 1 FROM changes WHERE epoch = $1 AND id = $2), coalesce((SELECT %[3]s(id, ' ') FROM histories), ''),
		c.epoch, c.id, c.what
	FROM (SELECT epoch, id FROM changes ORDER BY epoch DESC LIMIT 1) newest
	LEFT JOIN changes c ON c.epoch > $1 AND $2 <> '' ORDER BY c.epoch LIMIT %[4]d`

// renewPostgres writes and reads in one statement, and so in one round trip. The write proves that
// this server can commit, which an isolated primary without its standby cannot. A position that is
// not in the history, or older than the recorded one, is not recorded as applied: a statement may
// arrive late. A replica at a position outside the history gets no lease, so it is not recorded as
// seen either, and is not shown as live.
var (
	renewPostgres = fmt.Sprintf(news, `WITH feed AS MATERIALIZED (SELECT `+postgresRecorders.feed+` AS works), me AS (
		UPDATE replicas SET acked = greatest(acked, (SELECT epoch FROM changes WHERE epoch = $1 AND id = $2)),
			seen_at = CASE WHEN EXISTS (SELECT 1 FROM changes WHERE epoch = $1 AND id = $2) AND (SELECT works FROM feed) THEN changes_now() ELSE seen_at END
		WHERE id = $3 AND set_config('lock_timeout', (life / 4)::TEXT, true) <> '' RETURNING `+durable(true)+`)`,
		`CASE WHEN (SELECT works FROM feed) THEN (SELECT count(*) FROM me) ELSE -1 END`, "string_agg", maxNews+1)
	newsPostgres = fmt.Sprintf(news, "", "1", "string_agg", maxNews+1)
	// On SQLite a renewal only reads: there is one file, and no other server.
	renewSQLite = fmt.Sprintf(news, "", `CASE WHEN `+sqliteRecorders.feed+` THEN (SELECT count(*) FROM replicas WHERE id = $3) ELSE -1 END`, "group_concat", maxNews+1)
	newsSQLite  = fmt.Sprintf(news, "", "1", "group_concat", maxNews+1)
)

// Renew implements [lease.Registry].
func (r *Registry) Renew(ctx context.Context, id string, at lease.Position) (lease.News, error) {
	listed, news, err := r.read(ctx, r.committed, r.db.dialect.renew, int64(at.Epoch), at.ID, id)
	switch {
	case err == nil && listed < 0:
		if err = r.db.checkTriggers(ctx, r.pool); err == nil {
			err = lease.ErrUnrecorded // they were enabled again just now
		}
	case err == nil && listed == 0:
		err = lease.ErrFenced
	}
	return news, err
}

// News implements [lease.Registry].
func (r *Registry) News(ctx context.Context, at lease.Position) (lease.News, error) {
	_, news, err := r.read(ctx, r.on, r.db.dialect.news, int64(at.Epoch), at.ID)
	return news, err
}

func (r *Registry) read(ctx context.Context, on func(context.Context, func(context.Context, *sql.Conn) error) error, query string, args ...any) (listed int, news lease.News, err error) {
	if err := r.sameFile(); err != nil {
		return 0, lease.News{}, err
	}
	err = on(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		listed, news, err = readNews(ctx, conn, query, args...)
		return err
	})
	if err == nil {
		err = r.sameFile() // data read after the file was replaced is worthless
	}
	return listed, news, err
}

func readNews(ctx context.Context, conn *sql.Conn, query string, args ...any) (listed int, news lease.News, err error) {
	rows, err := conn.QueryContext(ctx, query, args...)
	if err != nil {
		return 0, lease.News{}, err
	}
	defer rows.Close()
	for rows.Next() {
		var accepted string
		var epoch sql.NullInt64
		var changeID, what sql.NullString
		if err := rows.Scan(&listed, &news.Oldest, &news.Newest.Epoch, &news.Newest.ID, &news.Known, &accepted,
			&epoch, &changeID, &what); err != nil {
			return 0, lease.News{}, err
		}
		news.Accepted = strings.Fields(accepted)
		if epoch.Valid {
			position := lease.Position{Epoch: lease.Epoch(epoch.Int64), ID: changeID.String}
			news.Changes = append(news.Changes, lease.Change{Position: position, What: strings.Fields(what.String)})
		}
	}
	if err := rows.Err(); err != nil {
		return 0, lease.News{}, err
	}
	if news.Newest.ID == "" {
		return 0, lease.News{}, errors.New("the table of changes is empty: somebody has deleted them")
	}
	return listed, news, nil
}

// Ack implements [lease.Registry].
func (r *Registry) Ack(ctx context.Context, id string, at lease.Position, durably bool) error {
	statement := `UPDATE replicas SET acked = CASE WHEN acked < $2 THEN $2 ELSE acked END, seen_at = ` + r.db.dialect.now + `
		WHERE id = $1 AND EXISTS (SELECT 1 FROM changes WHERE epoch = $2 AND id = $3)`
	on := r.committed
	switch {
	case !durably:
		statement, on = statement+r.db.dialect.lazily, r.on
	case r.db.dialect.file == nil:
		statement += ` RETURNING ` + durable(true)
	}
	var listed bool
	err := on(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		listed, err = affected(conn.ExecContext(ctx, statement, id, int64(at.Epoch), at.ID))
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
	r.db.count(ctx, forLease, err)
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
	before := r.db.unsynced()
	err := r.on(ctx, f)
	if err == nil && r.db.unsynced() != before {
		err = errors.New("the server gave up waiting for its standby")
	}
	return err
}

// sameFile fails once the file of a SQLite database is no longer the one that is open.
func (r *Registry) sameFile() error {
	err := r.db.dialect.sameFile()
	if errors.Is(err, errReplaced) {
		return fmt.Errorf("%w: %w; look at the keys, then start this process again", err, lease.ErrRewritten)
	}
	return err
}

// Watch calls hint whenever there may be news, until ctx ends.
func (r *Registry) Watch(ctx context.Context, hint func(lease.Epoch)) {
	if r.db.dialect.file != nil {
		r.watchFile(ctx, hint)
		return
	}
	r.listen(ctx, hint)
}

// listen watches a PostgreSQL database. Announcements only speed things up: they are lost while the
// connection is down, and a PgBouncer in transaction mode loses all of them.
func (r *Registry) listen(ctx context.Context, hint func(lease.Epoch)) {
	period := r.silence / 2
	server := r.db.dialect.server
	listener := pq.NewDialListener(&dialer{ctx: ctx, silence: r.silence, resolve: server.resolve}, server.dsn,
		min(period, time.Second), min(4*period, 5*time.Second), r.db.dialect.connections.listen)
	var all sync.WaitGroup
	defer all.Wait()
	defer func() {
		listener.Close()
		r.db.dialect.connections.listen(pq.ListenerEventDisconnected, nil)
		go func() { // until its goroutine ends, perhaps after a pause between two attempts
			for range listener.Notify {
			}
		}()
	}()
	all.Go(func() { r.ping(ctx, listener, period) })
	probe := "probe " + rand.Text()
	arrived := make(chan struct{})
	echo := sync.OnceFunc(func() { close(arrived) }) // others can receive and repeat it
	all.Go(func() {
		if err := listener.Listen(channel); err == nil {
			hint(0) // for changes before it
			r.probe(ctx, probe, arrived)
		}
	})
	for {
		select {
		case n, ok := <-listener.Notify:
			switch {
			case !ok:
				return
			case n == nil: // reconnected, after an unknown time
				hint(0)
			case n.Extra == probe:
				echo()
			case n.Extra == recalled:
				r.replica.Recall()
			default:
				// A payload that is not a number is not ours and means nothing.
				epoch, _ := strconv.ParseInt(n.Extra, 10, 64)
				if epoch > 0 {
					hint(lease.Epoch(epoch))
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// ping sends on the listener's connection in every period, so that a connection without replies is
// given up after two.
func (r *Registry) ping(ctx context.Context, listener *pq.Listener, period time.Duration) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = listener.Ping() // the listener reconnects by itself
		case <-ctx.Done():
			return
		}
	}
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
	r.replica.Log.Warn("announcements of changes do not arrive, as behind a PgBouncer in transaction mode: changes are still in force "+
		"everywhere when a command returns, but it waits for the next renewal of every lease; connect to PostgreSQL itself or in session mode",
		"renewal", lease.Period(r.replica.Life).String(), "error", err)
}

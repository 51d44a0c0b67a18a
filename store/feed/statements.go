package feed

import (
	"fmt"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// statements are texts that the two databases do not have in common.
type statements struct {
	register, renew, updates string // of a Registry
	// touch makes a change that touches nothing.
	touch string
}

func statementsOf(db *store.DB) statements {
	if db.File() != "" {
		return sqliteStatements(db.Dialect)
	}
	return postgresStatements(db.Dialect)
}

// updatesFormat reads the changes after a position. Its parameters are the beginning of the
// statement, whether the replica is on the list (-1: changes are not recorded), the function that
// joins names, and the maximum number of changes. Changes that only added rows are left out but for
// the newest: a later one of any kind stands for them, and an import into SQLite makes one for each
// row. Of several in a row that added keys of one import, the last one stands for all.
const updatesFormat = `%[1]s SELECT %[2]s, (SELECT min(epoch) FROM changes), newest.epoch, newest.id,
		EXISTS (SELECT 1 FROM changes WHERE epoch = $1 AND id = $2), coalesce((SELECT %[3]s(id, ' ') FROM histories), ''),
		c.epoch, c.id, c.what
	FROM (SELECT epoch, id FROM changes ORDER BY epoch DESC LIMIT 1) newest
	LEFT JOIN changes c ON c.epoch > $1 AND $2 <> '' AND (c.what <> '` + lease.Added + `' OR c.epoch = newest.epoch)
		AND NOT (c.what LIKE '` + lease.Imported + `:%%' AND EXISTS (SELECT 1 FROM changes n WHERE n.epoch = c.epoch + 1 AND n.what = c.what)) ORDER BY c.epoch LIMIT %[4]d`

// postgresStatements returns the statements of PostgreSQL.
//
// A registration and a renewal wait for the lock on their row for a quarter of the lease at most.
// An earlier statement whose commit waits for a standby may hold the lock: the server does not
// notice that its client has gone, and the following statements would occupy the connections one by
// one.
//
// A renewal writes and reads in one statement, and so in one round trip. The write proves that this
// server can commit, which an isolated primary without its standby cannot. A position that is not
// in the history, or older than the recorded one, is not recorded as applied: a statement may
// arrive late. A replica at a position outside the history gets no lease, so it is not recorded as
// seen either, and is not shown as live.
func postgresStatements(d *store.Dialect) statements {
	return statements{
		register: `WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', (CAST($5 AS BIGINT) / 4)::TEXT, true), ` + d.Durable + `)
	INSERT INTO replicas (id, name, address, version, life, routes, acked, started_at, seen_at)
	SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT), CAST($6 AS TEXT), -1, changes_now(), changes_now()
	FROM patience ON CONFLICT (id) DO UPDATE SET acked = replicas.acked`,
		renew: fmt.Sprintf(updatesFormat, `WITH feed AS MATERIALIZED (SELECT `+d.Recording+` AS works), me AS (
		UPDATE replicas SET acked = greatest(acked, (SELECT epoch FROM changes WHERE epoch = $1 AND id = $2)),
			seen_at = CASE WHEN EXISTS (SELECT 1 FROM changes WHERE epoch = $1 AND id = $2) AND (SELECT works FROM feed) THEN changes_now() ELSE seen_at END
		WHERE id = $3 AND set_config('lock_timeout', (life / 4)::TEXT, true) <> '' RETURNING `+d.Durable+`)`,
			`CASE WHEN (SELECT works FROM feed) THEN (SELECT count(*) FROM me) ELSE -1 END`, "string_agg", maxUpdates+1),
		updates: fmt.Sprintf(updatesFormat, "", "1", "string_agg", maxUpdates+1),
		touch:   `INSERT INTO changes_pending (tx, what) VALUES (txid_current(), '')`,
	}
}

// sqliteStatements returns the statements of SQLite. There a renewal only reads: there is one file,
// and no other server.
func sqliteStatements(d *store.Dialect) statements {
	return statements{
		register: `INSERT INTO replicas (id, name, address, version, life, routes, acked, started_at, seen_at)
	VALUES ($1, $2, $3, $4, $5, $6, -1, CAST(unixepoch('subsec') * 1000 AS INTEGER), CAST(unixepoch('subsec') * 1000 AS INTEGER))
	ON CONFLICT (id) DO NOTHING`,
		renew:   fmt.Sprintf(updatesFormat, "", `CASE WHEN `+d.Recording+` THEN (SELECT count(*) FROM replicas WHERE id = $3) ELSE -1 END`, "group_concat", maxUpdates+1),
		updates: fmt.Sprintf(updatesFormat, "", "1", "group_concat", maxUpdates+1),
		touch:   `INSERT INTO changes (what) VALUES ('')`,
	}
}

-- What the users' page shows of requests. One text for PostgreSQL and SQLite.

-- +goose Up
-- The last requests of each user, as Envoy's access log tells them. Under load some are left out.
CREATE TABLE requests (
    id        TEXT NOT NULL PRIMARY KEY,
    user_name TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    at        BIGINT NOT NULL,             -- when it began
    method    TEXT NOT NULL,
    path      TEXT NOT NULL,               -- without the query
    status    BIGINT NOT NULL,             -- what the client got; 0: nothing
    reason    TEXT NOT NULL,               -- of the decision
    credits   BIGINT NOT NULL,
    refunded  BOOLEAN NOT NULL CHECK (refunded IN (TRUE, FALSE))
);
CREATE INDEX requests_user ON requests (user_name, at, id);
CREATE INDEX requests_at ON requests (at);

-- How often each key was used, from where: for ten minutes a row, and after a day for a day.
CREATE TABLE request_counts (
    user_name TEXT NOT NULL,
    key_id    TEXT NOT NULL,               -- '': all ended keys of the user together
    ended     BOOLEAN NOT NULL CHECK (ended IN (TRUE, FALSE)), -- the key had ended before, and was refused
    slot      BIGINT NOT NULL,             -- the beginning of the time that is counted
    day       BOOLEAN NOT NULL CHECK (day IN (TRUE, FALSE)), -- that is a day
    address   TEXT NOT NULL,               -- of the client; '': others
    agent     TEXT NOT NULL,
    requests  BIGINT NOT NULL,
    last_at   BIGINT NOT NULL,
    PRIMARY KEY (user_name, key_id, ended, slot, day, address, agent)
);
CREATE INDEX request_counts_slot ON request_counts (day, slot);

-- What each user was charged and got back on a day such as 20261124, in UTC. The figures are the ledger's:
-- those of a month add up to what it says. A day after the month of a charge counts as that month's last.
CREATE TABLE credit_days (
    user_name TEXT NOT NULL,
    day       BIGINT NOT NULL,
    used      BIGINT NOT NULL,
    refunded  BIGINT NOT NULL,
    PRIMARY KEY (user_name, day)
);

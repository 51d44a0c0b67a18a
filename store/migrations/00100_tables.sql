-- The tables, one text for PostgreSQL and SQLite. Times are Unix milliseconds, UTC; a month is a
-- number such as 202611. NOT NULL stands beside PRIMARY KEY for SQLite, which does not imply it.

-- Directory -------------------------------------------------------------------------------------

-- A name has 1 to 128 of the characters that are safe in a header, a label and a path, and begins
-- with a letter or digit: ltrim leaves nothing of it.
CREATE TABLE plans (
    name        TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128
        AND ltrim(name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-') = ''
        AND ltrim(substr(name, 1, 1), '._@+-') <> ''),
    api_access  BOOLEAN NOT NULL CHECK (api_access IN (TRUE, FALSE)),
    rate_limit  BIGINT CHECK (rate_limit BETWEEN 0 AND 10000),  -- requests per window; NULL: unlimited
    rate_window BIGINT NOT NULL CHECK (rate_window BETWEEN 1000 AND 86400000), -- milliseconds
    credits     BIGINT CHECK (credits >= 0),                    -- per month; NULL: unlimited
    pool        TEXT NOT NULL CHECK (pool IN ('user', 'account')) -- the owner of the credits
);

CREATE TABLE accounts (
    name   TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128
        AND ltrim(name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-') = ''
        AND ltrim(substr(name, 1, 1), '._@+-') <> ''),
    kind   TEXT NOT NULL CHECK (kind IN ('person', 'organization')),
    plan   TEXT NOT NULL REFERENCES plans (name),
    status TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'cancelled'))
);
CREATE INDEX accounts_plan ON accounts (plan);

CREATE TABLE users (
    name       TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128
        AND ltrim(name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-') = ''
        AND ltrim(substr(name, 1, 1), '._@+-') <> ''),
    kind       TEXT NOT NULL CHECK (kind IN ('person', 'service')),
    account    TEXT NOT NULL REFERENCES accounts (name),
    status     TEXT NOT NULL CHECK (status IN ('active', 'disabled')),
    subject    TEXT CHECK (octet_length(subject) BETWEEN 1 AND 255), -- "sub" in the web app's tokens
    not_before BIGINT NOT NULL DEFAULT 0 -- older tokens of the web app are rejected
);
CREATE INDEX users_account ON users (account);
CREATE UNIQUE INDEX users_subject ON users (subject);

CREATE TABLE keys (
    id         TEXT NOT NULL PRIMARY KEY,
    user_name  TEXT NOT NULL REFERENCES users (name),
    digest     BYTEA NOT NULL UNIQUE CHECK (length(digest) = 32), -- SHA-256 of the key
    sealed     BYTEA,                                 -- the key, encrypted; only while it is live
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,                                -- NULL: the key is live
    CHECK (revoked_at IS NULL OR sealed IS NULL)
);
-- One live key per user.
CREATE UNIQUE INDEX keys_live ON keys (user_name) WHERE revoked_at IS NULL;
CREATE INDEX keys_user ON keys (user_name);

CREATE TABLE sessions (
    digest     BYTEA NOT NULL PRIMARY KEY CHECK (length(digest) = 32), -- SHA-256 of the cookie's value
    user_name  TEXT NOT NULL REFERENCES users (name),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX sessions_user ON sessions (user_name);

CREATE TABLE login_links (
    digest     BYTEA NOT NULL PRIMARY KEY CHECK (length(digest) = 32), -- SHA-256 of the link's token
    user_name  TEXT NOT NULL REFERENCES users (name),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT                 -- NULL: unused
);
CREATE INDEX login_links_user ON login_links (user_name);

-- The secrets of the keyed tags in keys. The newest signs; a second one is accepted during a
-- rotation.
CREATE TABLE tag_secrets (
    id         BIGINT NOT NULL PRIMARY KEY,
    secret     BYTEA NOT NULL CHECK (length(secret) >= 16),
    created_at BIGINT NOT NULL
);

-- The public half of the sealing key, if keys are kept in a form that can be shown again.
CREATE TABLE seal_keys (
    id         BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    public     BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- Replicas --------------------------------------------------------------------------------------

-- The processes that answer from memory.
CREATE TABLE replicas (
    id         TEXT NOT NULL PRIMARY KEY,
    name       TEXT NOT NULL,            -- of the machine
    address    TEXT NOT NULL,            -- of its gRPC listener
    version    TEXT NOT NULL,
    life       BIGINT NOT NULL CHECK (life > 0), -- TTL of its lease in milliseconds
    routes     TEXT NOT NULL DEFAULT '', -- the beginning of a hash of its route table; for display alone
    acked      BIGINT NOT NULL,          -- it has applied all changes up to this epoch; -1: none
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL           -- its last sign of life, by the clock of the database; for display alone
);

-- The rewritten histories that an operator has accepted.
CREATE TABLE histories (
    id          TEXT NOT NULL PRIMARY KEY,
    accepted_at BIGINT NOT NULL
);

-- The calls that may be repeated, by their idempotency key.
CREATE TABLE calls (
    id        TEXT NOT NULL PRIMARY KEY,
    operation TEXT NOT NULL,             -- the same key for another operation is refused
    result    TEXT NOT NULL,             -- JSON, without any secret
    made_at   BIGINT NOT NULL
);

-- The definitions of our triggers. A replica stops answering while one of them, or its function, is
-- another: changes might go unrecorded.
CREATE TABLE trigger_definitions (
    name       TEXT NOT NULL PRIMARY KEY, -- TABLE.TRIGGER; on SQLite, where names are unique, TRIGGER
    definition TEXT NOT NULL
);

-- Credits ---------------------------------------------------------------------------------------

-- The ledger of credits. A credit is free, leased to a process, or used. Every use is counted in
-- two pools, the user's and the account's, so that a plan can change from one to the other in
-- mid-month.
CREATE TABLE credit_pools (
    month    BIGINT NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('user', 'account')),
    name     TEXT NOT NULL,
    granted  BIGINT NOT NULL DEFAULT 0,  -- at least the limit, and at least what is leased and used
    leased   BIGINT NOT NULL DEFAULT 0 CHECK (leased >= 0),   -- in blocks, and not reported as used
    used     BIGINT NOT NULL DEFAULT 0 CHECK (used >= 0),     -- reported as used
    refunded BIGINT NOT NULL DEFAULT 0 CHECK (refunded >= 0), -- of these, given back
    CHECK (leased + used - refunded <= granted),              -- nothing is sold twice
    PRIMARY KEY (month, kind, name)
);

-- The processes that hold credits. The figures of a process count from its start, and a report
-- whose number is not above the last one's is ignored: a report may be repeated and may arrive
-- late.
CREATE TABLE credit_holders (
    id          TEXT NOT NULL PRIMARY KEY,
    replica     TEXT NOT NULL,           -- its row in replicas; the process lives as long as that is there
    seq         BIGINT NOT NULL,         -- number of its last report
    ended       BOOLEAN NOT NULL,        -- it has stopped cleanly and holds nothing
    reported_at BIGINT NOT NULL
);

CREATE TABLE credit_blocks (
    month  BIGINT NOT NULL,
    kind   TEXT NOT NULL,
    name   TEXT NOT NULL,
    holder TEXT NOT NULL,
    taken  BIGINT NOT NULL,
    used   BIGINT NOT NULL CHECK (used BETWEEN 0 AND taken),
    PRIMARY KEY (month, kind, name, holder)
);

-- The credits that each process has charged each user.
CREATE TABLE credit_usages (
    month     BIGINT NOT NULL,
    kind      TEXT NOT NULL,             -- of the pool that paid
    user_name TEXT NOT NULL,
    account   TEXT NOT NULL,             -- of the user at that time
    holder    TEXT NOT NULL,
    used      BIGINT NOT NULL CHECK (used >= 0),
    PRIMARY KEY (month, user_name, account, kind, holder)
);
CREATE INDEX credit_usages_account ON credit_usages (month, account);

-- The part of these charges whose outcome was reported, to whichever process.
CREATE TABLE credit_reported (
    month     BIGINT NOT NULL,
    user_name TEXT NOT NULL,
    account   TEXT NOT NULL,
    holder    TEXT NOT NULL,             -- the process that charged
    credits   BIGINT NOT NULL CHECK (credits >= 0),
    PRIMARY KEY (month, user_name, account, holder)
);

-- The charges whose outcome was reported, so that each is confirmed once: a bit each, in pages of
-- 8,192.
CREATE TABLE credit_charges (
    holder TEXT NOT NULL,   -- the process that charged
    page   BIGINT NOT NULL, -- the number of the charge by 8,192
    month  BIGINT NOT NULL, -- of the latest charge
    marks  TEXT NOT NULL,   -- the bits in base64; '*': all are set
    PRIMARY KEY (holder, page)
);
CREATE INDEX credit_charges_month ON credit_charges (month);

-- A closed month has refunded its unreported charges, and takes no more reports.
CREATE TABLE credit_months (
    month  BIGINT NOT NULL PRIMARY KEY,
    closed BOOLEAN NOT NULL CHECK (closed IN (TRUE, FALSE))
);

-- The refunds. A charge comes back as a whole or in parts; each part raises the total.
CREATE TABLE credit_refunds (
    charge    TEXT NOT NULL,
    total     BIGINT NOT NULL,           -- credits of the charge that have come back with this part
    credits   BIGINT NOT NULL CHECK (credits BETWEEN 1 AND total), -- this part
    month     BIGINT NOT NULL,
    user_name TEXT NOT NULL,
    account   TEXT NOT NULL,
    cause     TEXT NOT NULL,
    made_at   BIGINT NOT NULL,
    PRIMARY KEY (charge, total)
);
CREATE INDEX credit_refunds_user_time ON credit_refunds (month, user_name, made_at, charge, total);
CREATE INDEX credit_refunds_account ON credit_refunds (month, account);

-- Credits that operators have granted in addition to the plan.
CREATE TABLE credit_grants (
    id      TEXT NOT NULL PRIMARY KEY,
    month   BIGINT NOT NULL,
    kind    TEXT NOT NULL CHECK (kind IN ('user', 'account')),
    name    TEXT NOT NULL,
    credits BIGINT NOT NULL,
    made_at BIGINT NOT NULL
);
CREATE INDEX credit_grants_pool ON credit_grants (month, kind, name);

-- The pools whose unused credits a process asks the others for.
CREATE TABLE credit_recalls (
    month BIGINT NOT NULL,
    kind  TEXT NOT NULL,
    name  TEXT NOT NULL,
    at    BIGINT NOT NULL,
    PRIMARY KEY (month, kind, name)
);

-- The secrets that sign charges: for the upstream and for the access log. The newest of each signs.
CREATE TABLE charge_secrets (
    id         BIGINT NOT NULL PRIMARY KEY,
    purpose    TEXT NOT NULL CHECK (purpose IN ('upstream', 'log')),
    secret     BYTEA NOT NULL CHECK (length(secret) >= 32),
    created_at BIGINT NOT NULL
);

-- The ledger and its proof: granted = settled + leased + free, and each in_ figure repeats another
-- one as the sum of its parts.
CREATE VIEW credit_ledger AS
SELECT p.month, p.kind, p.name, p.granted, p.used - p.refunded AS settled, p.leased,
    p.granted - (p.used - p.refunded) - p.leased AS free, p.used, p.refunded,
    coalesce((SELECT sum(b.taken - b.used) FROM credit_blocks b
        WHERE b.month = p.month AND b.kind = p.kind AND b.name = p.name), 0) AS in_blocks,
    CASE p.kind
        WHEN 'user' THEN coalesce((SELECT sum(u.used) FROM credit_usages u WHERE u.month = p.month AND u.user_name = p.name), 0)
        ELSE coalesce((SELECT sum(u.used) FROM credit_usages u WHERE u.month = p.month AND u.account = p.name), 0)
    END AS in_usages,
    CASE p.kind
        WHEN 'user' THEN coalesce((SELECT sum(r.credits) FROM credit_refunds r WHERE r.month = p.month AND r.user_name = p.name), 0)
        ELSE coalesce((SELECT sum(r.credits) FROM credit_refunds r WHERE r.month = p.month AND r.account = p.name), 0)
    END AS in_refunds
FROM credit_pools p;

-- The users' page -------------------------------------------------------------------------------

-- The last requests of each user, as Envoy's access log reports them. Under load some are left out.
CREATE TABLE requests (
    id        TEXT NOT NULL PRIMARY KEY,
    user_name TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    at        BIGINT NOT NULL,             -- its start
    method    TEXT NOT NULL,
    path      TEXT NOT NULL,               -- without the query
    status    BIGINT NOT NULL,             -- as the client saw it; 0: no answer
    reason    TEXT NOT NULL,               -- of the decision
    credits   BIGINT NOT NULL,
    refunded  BIGINT NOT NULL              -- of these, come back
);
CREATE INDEX requests_user ON requests (user_name, at, id);
CREATE INDEX requests_at ON requests (at);

-- The requests with each key by address and program: a row for ten minutes, after a day for a day.
CREATE TABLE request_counts (
    user_name TEXT NOT NULL,
    key_id    TEXT NOT NULL,               -- '': all revoked keys of the user together
    ended     BOOLEAN NOT NULL CHECK (ended IN (TRUE, FALSE)), -- the key was revoked, and the request refused
    slot      BIGINT NOT NULL,             -- the start of the period
    day       BOOLEAN NOT NULL CHECK (day IN (TRUE, FALSE)), -- the period is a day
    address   TEXT NOT NULL,               -- of the client; '': others
    agent     TEXT NOT NULL,
    requests  BIGINT NOT NULL,
    last_at   BIGINT NOT NULL,
    PRIMARY KEY (user_name, key_id, ended, slot, day, address, agent)
);
CREATE INDEX request_counts_slot ON request_counts (day, slot);

-- The credits that each user was charged and refunded on a day such as 20261124, in UTC. The
-- figures are the ledger's: those of a month add up to its sums. A posting after the month of its
-- charge counts on the last day of that month.
CREATE TABLE credit_days (
    user_name TEXT NOT NULL,
    day       BIGINT NOT NULL,
    used      BIGINT NOT NULL,
    refunded  BIGINT NOT NULL,
    PRIMARY KEY (user_name, day)
);

-- The rate logs of stopped replicas, for the next one that starts. Each has a form of its own.
CREATE TABLE rate_logs (
    id       TEXT NOT NULL PRIMARY KEY,
    log      BYTEA NOT NULL,
    saved_at BIGINT NOT NULL
);

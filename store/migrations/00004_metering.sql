-- The ledger of credits. A credit is in one of these states: free, leased to a process, or used. Every
-- use is counted in two pools, the user's and the account's, so that a plan can change from one to the
-- other in the middle of a month. One text for PostgreSQL and SQLite. A month is a number such as 202611.

-- +goose Up
CREATE TABLE credit_pools (
    month    BIGINT NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('user', 'account')),
    name     TEXT NOT NULL,
    granted  BIGINT NOT NULL DEFAULT 0,                       -- at least the limit, and at least what is gone
    leased   BIGINT NOT NULL DEFAULT 0 CHECK (leased >= 0),   -- in blocks, and not reported as used
    used     BIGINT NOT NULL DEFAULT 0 CHECK (used >= 0),     -- reported as used
    refunded BIGINT NOT NULL DEFAULT 0 CHECK (refunded >= 0), -- of these, given back
    CHECK (leased + used - refunded <= granted),              -- nothing is sold twice
    PRIMARY KEY (month, kind, name)
);

-- The processes that hold credits. The numbers of a process count from its beginning, and a report with a
-- lower number than the last one is ignored, so that a report may be made twice and arrive late.
CREATE TABLE credit_holders (
    id          TEXT NOT NULL PRIMARY KEY,
    replica     TEXT NOT NULL,           -- its place on the list of replicas: it lives as long as that is there
    seq         BIGINT NOT NULL,         -- of its last report
    ended       BOOLEAN NOT NULL,        -- in good order: it holds nothing
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

-- What each process has charged each user.
CREATE TABLE credit_usages (
    month     BIGINT NOT NULL,
    kind      TEXT NOT NULL,                        -- of the pool that it came from
    user_name TEXT NOT NULL,
    account   TEXT NOT NULL,                        -- of the user at that time
    holder    TEXT NOT NULL,
    used      BIGINT NOT NULL CHECK (used >= 0),
    PRIMARY KEY (month, user_name, account, kind, holder)
);
CREATE INDEX credit_usages_account ON credit_usages (month, account);

-- Of what each process has charged each user: that of which the outcome was reported, to whatever
-- process.
CREATE TABLE credit_confirmed (
    month     BIGINT NOT NULL,
    user_name TEXT NOT NULL,
    account   TEXT NOT NULL,
    holder    TEXT NOT NULL,                        -- the process that charged it
    credits   BIGINT NOT NULL CHECK (credits >= 0),
    PRIMARY KEY (month, user_name, account, holder)
);

-- The charges whose outcome was reported, so that each is confirmed once: a bit each, in pages of
-- 8,192.
CREATE TABLE credit_charges (
    holder TEXT NOT NULL,   -- the process that made them
    page   BIGINT NOT NULL, -- their number by 8,192
    month  BIGINT NOT NULL, -- of the latest
    marks  TEXT NOT NULL,   -- the bits in base64; '*': all are set
    PRIMARY KEY (holder, page)
);
CREATE INDEX credit_charges_month ON credit_charges (month);

-- The months that were closed: what nobody had reported was given back, and nothing can be reported
-- now.
CREATE TABLE credit_months (
    month  BIGINT NOT NULL PRIMARY KEY,
    closed BOOLEAN NOT NULL CHECK (closed IN (TRUE, FALSE))
);

-- Of the charges only those that were given back have a row.
CREATE TABLE credit_refunds (
    charge    TEXT NOT NULL PRIMARY KEY,
    month     BIGINT NOT NULL,
    user_name TEXT NOT NULL,
    account   TEXT NOT NULL,
    credits   BIGINT NOT NULL CHECK (credits > 0),
    cause     TEXT NOT NULL,
    made_at   BIGINT NOT NULL
);
CREATE INDEX credit_refunds_user ON credit_refunds (month, user_name);
CREATE INDEX credit_refunds_account ON credit_refunds (month, account);

-- What operators have granted beside the plan.
CREATE TABLE credit_grants (
    id      TEXT NOT NULL PRIMARY KEY,
    month   BIGINT NOT NULL,
    kind    TEXT NOT NULL CHECK (kind IN ('user', 'account')),
    name    TEXT NOT NULL,
    credits BIGINT NOT NULL,
    made_at BIGINT NOT NULL
);
CREATE INDEX credit_grants_pool ON credit_grants (month, kind, name);

-- The pools of which a process asks the others for what they do not need.
CREATE TABLE credit_recalls (
    month BIGINT NOT NULL,
    kind  TEXT NOT NULL,
    name  TEXT NOT NULL,
    at    BIGINT NOT NULL,
    PRIMARY KEY (month, kind, name)
);

-- The secrets that charges are signed with, by what for: 'upstream' or 'log'. The newest is in use.
CREATE TABLE charge_secrets (
    id         BIGINT NOT NULL PRIMARY KEY,
    purpose    TEXT NOT NULL CHECK (purpose IN ('upstream', 'log')),
    secret     BYTEA NOT NULL CHECK (length(secret) >= 32),
    created_at BIGINT NOT NULL
);

-- The ledger, and what it must agree with: granted = settled + leased + free, where each figure is also
-- the sum of what it is made of.
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

-- The rate logs of replicas that have stopped, for the next one that starts. Each is in a form of its own.
CREATE TABLE rate_logs (
    id       TEXT NOT NULL PRIMARY KEY,
    log      BYTEA NOT NULL,
    saved_at BIGINT NOT NULL
);

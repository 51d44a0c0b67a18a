-- One text for PostgreSQL and SQLite. Times are Unix milliseconds, UTC. NOT NULL stands beside PRIMARY
-- KEY for SQLite, which does not imply it. A name is 1 to 128 of the characters that are safe in a
-- header, a label and a path, and begins with a letter or digit: ltrim leaves nothing of it.

-- +goose Up
CREATE TABLE plans (
    name        TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128
        AND ltrim(name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-') = ''
        AND ltrim(substr(name, 1, 1), '._@+-') <> ''),
    api_access  BOOLEAN NOT NULL CHECK (api_access IN (TRUE, FALSE)),
    rate_limit  BIGINT CHECK (rate_limit BETWEEN 0 AND 10000),    -- requests per window; NULL: unlimited
    rate_window BIGINT NOT NULL CHECK (rate_window BETWEEN 1000 AND 86400000), -- milliseconds
    credits     BIGINT CHECK (credits >= 0),                      -- per month; NULL: unlimited
    pool        TEXT NOT NULL CHECK (pool IN ('user', 'account')) -- whose the credits are
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
    name    TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128
        AND ltrim(name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-') = ''
        AND ltrim(substr(name, 1, 1), '._@+-') <> ''),
    kind    TEXT NOT NULL CHECK (kind IN ('person', 'service')),
    account TEXT NOT NULL REFERENCES accounts (name),
    status  TEXT NOT NULL CHECK (status IN ('active', 'disabled'))
);
CREATE INDEX users_account ON users (account);

CREATE TABLE keys (
    id         TEXT NOT NULL PRIMARY KEY,
    user_name  TEXT NOT NULL REFERENCES users (name),
    digest     BYTEA NOT NULL UNIQUE CHECK (length(digest) = 32), -- SHA-256 of the key
    sealed     BYTEA,                                 -- the key, encrypted; only while it lives
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,                                -- NULL: the key lives
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

-- The secrets of the keyed tags in keys, newest first in use; two are accepted while one is replaced.
CREATE TABLE tag_secrets (
    id         BIGINT NOT NULL PRIMARY KEY,
    secret     BYTEA NOT NULL CHECK (length(secret) >= 16),
    created_at BIGINT NOT NULL
);

-- The public half of the sealing key, if keys are to be kept in a form that can be shown again.
CREATE TABLE seal_keys (
    id         BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    public     BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- The change feed. Whatever changes what a decision depends on, by whoever and however, adds rows to
-- changes: an epoch, a random id, and the names of what it touches. There is one writer at a time, so
-- that who sees an epoch sees all before it.

CREATE TABLE changes (
    epoch   INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id      TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))), -- random: tells this history from another one that reached the same epoch
    what    TEXT NOT NULL,   -- 'user:ada plan:pro'; '*': everything; '': nothing
    made_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);

-- The processes that answer from memory.
CREATE TABLE replicas (
    id         TEXT NOT NULL PRIMARY KEY,
    name       TEXT NOT NULL,            -- of the machine
    address    TEXT NOT NULL,            -- of its gRPC listener
    version    TEXT NOT NULL,
    life       BIGINT NOT NULL CHECK (life > 0), -- of its lease, in milliseconds
    acked      BIGINT NOT NULL,          -- it has applied all changes up to this epoch; -1: none
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL           -- when it last wrote; for display alone
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

-- INSERT OR REPLACE removes the old row without a DELETE trigger: the row that comes names it, and where
-- it belonged to somebody else, what stands there is named before.
CREATE TRIGGER changes_plans_insert AFTER INSERT ON plans BEGIN
    INSERT INTO changes (what) VALUES ('plan:' || NEW.name);
END;
CREATE TRIGGER changes_plans_update AFTER UPDATE ON plans
WHEN (OLD.name, OLD.api_access, OLD.rate_limit, OLD.rate_window, OLD.credits, OLD.pool)
    IS NOT (NEW.name, NEW.api_access, NEW.rate_limit, NEW.rate_window, NEW.credits, NEW.pool) BEGIN
    INSERT INTO changes (what) VALUES ('plan:' || OLD.name || ' plan:' || NEW.name);
END;
CREATE TRIGGER changes_plans_delete AFTER DELETE ON plans BEGIN
    INSERT INTO changes (what) VALUES ('plan:' || OLD.name);
END;

CREATE TRIGGER changes_accounts_insert AFTER INSERT ON accounts BEGIN
    INSERT INTO changes (what) VALUES ('account:' || NEW.name);
END;
CREATE TRIGGER changes_accounts_update AFTER UPDATE ON accounts
WHEN (OLD.name, OLD.plan, OLD.status) IS NOT (NEW.name, NEW.plan, NEW.status) BEGIN
    INSERT INTO changes (what) VALUES ('account:' || OLD.name || ' account:' || NEW.name);
END;
CREATE TRIGGER changes_accounts_delete AFTER DELETE ON accounts BEGIN
    INSERT INTO changes (what) VALUES ('account:' || OLD.name);
END;

CREATE TRIGGER changes_users_insert AFTER INSERT ON users BEGIN
    INSERT INTO changes (what) VALUES ('user:' || NEW.name);
END;
CREATE TRIGGER changes_users_update AFTER UPDATE ON users
WHEN (OLD.name, OLD.account, OLD.status) IS NOT (NEW.name, NEW.account, NEW.status) BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.name || ' user:' || NEW.name);
END;
CREATE TRIGGER changes_users_delete AFTER DELETE ON users BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.name);
END;

CREATE TRIGGER changes_keys_replace BEFORE INSERT ON keys BEGIN
    INSERT INTO changes (what) SELECT 'user:' || user_name FROM keys
        WHERE (id = NEW.id OR digest = NEW.digest) AND user_name <> NEW.user_name;
END;
CREATE TRIGGER changes_keys_insert AFTER INSERT ON keys BEGIN
    INSERT INTO changes (what) VALUES ('user:' || NEW.user_name);
END;
CREATE TRIGGER changes_keys_move BEFORE UPDATE OF id, digest ON keys BEGIN
    INSERT INTO changes (what) SELECT 'user:' || user_name FROM keys
        WHERE (id = NEW.id OR digest = NEW.digest) AND id <> OLD.id;
END;
CREATE TRIGGER changes_keys_update AFTER UPDATE ON keys
WHEN (OLD.id, OLD.user_name, OLD.digest, OLD.revoked_at) IS NOT (NEW.id, NEW.user_name, NEW.digest, NEW.revoked_at) BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.user_name || ' user:' || NEW.user_name);
END;
CREATE TRIGGER changes_keys_delete AFTER DELETE ON keys BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.user_name);
END;

CREATE TRIGGER changes_sessions_replace BEFORE INSERT ON sessions BEGIN
    INSERT INTO changes (what) SELECT 'user:' || user_name FROM sessions WHERE digest = NEW.digest;
END;
CREATE TRIGGER changes_sessions_move BEFORE UPDATE OF digest ON sessions BEGIN
    INSERT INTO changes (what) SELECT 'user:' || user_name FROM sessions
        WHERE digest = NEW.digest AND digest <> OLD.digest;
END;
CREATE TRIGGER changes_sessions_update AFTER UPDATE ON sessions
WHEN (OLD.digest, OLD.user_name, OLD.expires_at, OLD.revoked_at) IS NOT (NEW.digest, NEW.user_name, NEW.expires_at, NEW.revoked_at) BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.user_name || ' user:' || NEW.user_name);
END;
CREATE TRIGGER changes_sessions_delete AFTER DELETE ON sessions BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.user_name);
END;

-- The beginning of this history.
INSERT INTO changes (what) VALUES ('*');

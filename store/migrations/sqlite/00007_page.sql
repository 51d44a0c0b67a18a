-- The users' page: login links, who a user is to the provider's web app, and the audit. Whatever
-- changes what a decision depends on is named in the change feed, as before.

ALTER TABLE users ADD COLUMN subject TEXT CHECK (length(subject) BETWEEN 1 AND 255); -- what the web app calls them
ALTER TABLE users ADD COLUMN not_before BIGINT NOT NULL DEFAULT 0;  -- the web app's tokens of before open nothing
CREATE UNIQUE INDEX users_subject ON users (subject);

DROP TRIGGER changes_users_update;
CREATE TRIGGER changes_users_update AFTER UPDATE ON users
WHEN (OLD.name, OLD.account, OLD.status, OLD.subject, OLD.not_before)
    IS NOT (NEW.name, NEW.account, NEW.status, NEW.subject, NEW.not_before) BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.name || ' user:' || NEW.name);
END;
CREATE TRIGGER changes_users_replace BEFORE INSERT ON users BEGIN
    INSERT INTO changes (what) SELECT 'user:' || name FROM users WHERE subject = NEW.subject AND name <> NEW.name;
END;
CREATE TRIGGER changes_users_move BEFORE UPDATE OF subject ON users BEGIN
    INSERT INTO changes (what) SELECT 'user:' || name FROM users WHERE subject = NEW.subject AND name <> OLD.name;
END;

CREATE TABLE login_links (
    digest     BYTEA NOT NULL PRIMARY KEY CHECK (length(digest) = 32), -- SHA-256 of the link's token
    user_name  TEXT NOT NULL REFERENCES users (name),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT                 -- NULL: nobody has logged in with it
);
CREATE INDEX login_links_user ON login_links (user_name);

-- Who changed what and when. Rows are never changed or deleted.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    at     BIGINT NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    actor  TEXT NOT NULL,             -- 'page:ada', 'command:root', or 'sql'
    action TEXT NOT NULL,             -- created, changed, deleted, revealed
    kind   TEXT NOT NULL,             -- plan, account, user, key, session, login link, grant, seal key
    name   TEXT NOT NULL,             -- of the plan or account, or of the user whose it is
    detail TEXT NOT NULL              -- JSON: the row, or of what changed the old and the new value. No secret.
);
CREATE INDEX audit_name ON audit (name, id);

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit can only be added to'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit can only be added to'); END;
CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'the audit can only be added to');
END;

-- Who acts in the transaction that writes, from its beginning to just before its end; else empty. There is
-- one writer at a time.
CREATE TABLE audit_actor (
    id    INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    actor TEXT NOT NULL
);

-- Of a digest nothing is kept but that it was replaced; of a public key four bytes, which tell two
-- apart.
CREATE TRIGGER audit_plans_insert AFTER INSERT ON plans BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'plan', NEW.name,
        json_object('name', NEW.name, 'api_access', NEW.api_access, 'rate_limit', NEW.rate_limit, 'rate_window', NEW.rate_window, 'credits', NEW.credits, 'pool', NEW.pool));
END;

CREATE TRIGGER audit_plans_update AFTER UPDATE ON plans
WHEN (OLD.name, OLD.api_access, OLD.rate_limit, OLD.rate_window, OLD.credits, OLD.pool)
    IS NOT (NEW.name, NEW.api_access, NEW.rate_limit, NEW.rate_window, NEW.credits, NEW.pool) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'plan', NEW.name,
        (SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'name' AS k, OLD.name AS o, NEW.name AS n
            UNION ALL SELECT 'api_access', OLD.api_access, NEW.api_access
            UNION ALL SELECT 'rate_limit', OLD.rate_limit, NEW.rate_limit
            UNION ALL SELECT 'rate_window', OLD.rate_window, NEW.rate_window
            UNION ALL SELECT 'credits', OLD.credits, NEW.credits
            UNION ALL SELECT 'pool', OLD.pool, NEW.pool) WHERE o IS NOT n));
END;

CREATE TRIGGER audit_plans_delete AFTER DELETE ON plans BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'plan', OLD.name,
        json_object('name', OLD.name, 'api_access', OLD.api_access, 'rate_limit', OLD.rate_limit, 'rate_window', OLD.rate_window, 'credits', OLD.credits, 'pool', OLD.pool));
END;

CREATE TRIGGER audit_accounts_insert AFTER INSERT ON accounts BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'account', NEW.name,
        json_object('name', NEW.name, 'kind', NEW.kind, 'plan', NEW.plan, 'status', NEW.status));
END;

CREATE TRIGGER audit_accounts_update AFTER UPDATE ON accounts
WHEN (OLD.name, OLD.kind, OLD.plan, OLD.status)
    IS NOT (NEW.name, NEW.kind, NEW.plan, NEW.status) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'account', NEW.name,
        (SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'name' AS k, OLD.name AS o, NEW.name AS n
            UNION ALL SELECT 'kind', OLD.kind, NEW.kind
            UNION ALL SELECT 'plan', OLD.plan, NEW.plan
            UNION ALL SELECT 'status', OLD.status, NEW.status) WHERE o IS NOT n));
END;

CREATE TRIGGER audit_accounts_delete AFTER DELETE ON accounts BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'account', OLD.name,
        json_object('name', OLD.name, 'kind', OLD.kind, 'plan', OLD.plan, 'status', OLD.status));
END;

CREATE TRIGGER audit_users_insert AFTER INSERT ON users BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'user', NEW.name,
        json_object('name', NEW.name, 'kind', NEW.kind, 'account', NEW.account, 'status', NEW.status, 'subject', NEW.subject, 'not_before', NEW.not_before));
END;

CREATE TRIGGER audit_users_update AFTER UPDATE ON users
WHEN (OLD.name, OLD.kind, OLD.account, OLD.status, OLD.subject, OLD.not_before)
    IS NOT (NEW.name, NEW.kind, NEW.account, NEW.status, NEW.subject, NEW.not_before) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'user', NEW.name,
        (SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'name' AS k, OLD.name AS o, NEW.name AS n
            UNION ALL SELECT 'kind', OLD.kind, NEW.kind
            UNION ALL SELECT 'account', OLD.account, NEW.account
            UNION ALL SELECT 'status', OLD.status, NEW.status
            UNION ALL SELECT 'subject', OLD.subject, NEW.subject
            UNION ALL SELECT 'not_before', OLD.not_before, NEW.not_before) WHERE o IS NOT n));
END;

CREATE TRIGGER audit_users_delete AFTER DELETE ON users BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'user', OLD.name,
        json_object('name', OLD.name, 'kind', OLD.kind, 'account', OLD.account, 'status', OLD.status, 'subject', OLD.subject, 'not_before', OLD.not_before));
END;

CREATE TRIGGER audit_keys_insert AFTER INSERT ON keys BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'key', NEW.user_name,
        json_object('id', NEW.id, 'user_name', NEW.user_name, 'created_at', NEW.created_at, 'revoked_at', NEW.revoked_at));
END;

CREATE TRIGGER audit_keys_update AFTER UPDATE ON keys
WHEN (OLD.id, OLD.user_name, OLD.created_at, OLD.revoked_at, OLD.digest)
    IS NOT (NEW.id, NEW.user_name, NEW.created_at, NEW.revoked_at, NEW.digest) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'key', NEW.user_name,
        json_patch((SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'id' AS k, OLD.id AS o, NEW.id AS n
            UNION ALL SELECT 'user_name', OLD.user_name, NEW.user_name
            UNION ALL SELECT 'created_at', OLD.created_at, NEW.created_at
            UNION ALL SELECT 'revoked_at', OLD.revoked_at, NEW.revoked_at) WHERE o IS NOT n),
            CASE WHEN OLD.digest IS NOT NEW.digest THEN '{"digest":"replaced"}' ELSE '{}' END));
END;

CREATE TRIGGER audit_keys_delete AFTER DELETE ON keys BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'key', OLD.user_name,
        json_object('id', OLD.id, 'user_name', OLD.user_name, 'created_at', OLD.created_at, 'revoked_at', OLD.revoked_at));
END;

CREATE TRIGGER audit_sessions_insert AFTER INSERT ON sessions BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'session', NEW.user_name,
        json_object('user_name', NEW.user_name, 'created_at', NEW.created_at, 'expires_at', NEW.expires_at, 'revoked_at', NEW.revoked_at));
END;

CREATE TRIGGER audit_sessions_update AFTER UPDATE ON sessions
WHEN (OLD.user_name, OLD.created_at, OLD.expires_at, OLD.revoked_at, OLD.digest)
    IS NOT (NEW.user_name, NEW.created_at, NEW.expires_at, NEW.revoked_at, NEW.digest) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'session', NEW.user_name,
        json_patch((SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'user_name' AS k, OLD.user_name AS o, NEW.user_name AS n
            UNION ALL SELECT 'created_at', OLD.created_at, NEW.created_at
            UNION ALL SELECT 'expires_at', OLD.expires_at, NEW.expires_at
            UNION ALL SELECT 'revoked_at', OLD.revoked_at, NEW.revoked_at) WHERE o IS NOT n),
            CASE WHEN OLD.digest IS NOT NEW.digest THEN '{"digest":"replaced"}' ELSE '{}' END));
END;

CREATE TRIGGER audit_sessions_delete AFTER DELETE ON sessions BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'session', OLD.user_name,
        json_object('user_name', OLD.user_name, 'created_at', OLD.created_at, 'expires_at', OLD.expires_at, 'revoked_at', OLD.revoked_at));
END;

CREATE TRIGGER audit_login_links_insert AFTER INSERT ON login_links BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'login link', NEW.user_name,
        json_object('user_name', NEW.user_name, 'created_at', NEW.created_at, 'expires_at', NEW.expires_at, 'used_at', NEW.used_at));
END;

CREATE TRIGGER audit_login_links_update AFTER UPDATE ON login_links
WHEN (OLD.user_name, OLD.created_at, OLD.expires_at, OLD.used_at, OLD.digest)
    IS NOT (NEW.user_name, NEW.created_at, NEW.expires_at, NEW.used_at, NEW.digest) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'login link', NEW.user_name,
        json_patch((SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'user_name' AS k, OLD.user_name AS o, NEW.user_name AS n
            UNION ALL SELECT 'created_at', OLD.created_at, NEW.created_at
            UNION ALL SELECT 'expires_at', OLD.expires_at, NEW.expires_at
            UNION ALL SELECT 'used_at', OLD.used_at, NEW.used_at) WHERE o IS NOT n),
            CASE WHEN OLD.digest IS NOT NEW.digest THEN '{"digest":"replaced"}' ELSE '{}' END));
END;

CREATE TRIGGER audit_credit_grants_insert AFTER INSERT ON credit_grants BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'grant', NEW.name,
        json_object('id', NEW.id, 'month', NEW.month, 'kind', NEW.kind, 'name', NEW.name, 'credits', NEW.credits));
END;

CREATE TRIGGER audit_credit_grants_update AFTER UPDATE ON credit_grants
WHEN (OLD.id, OLD.month, OLD.kind, OLD.name, OLD.credits)
    IS NOT (NEW.id, NEW.month, NEW.kind, NEW.name, NEW.credits) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'grant', NEW.name,
        (SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'id' AS k, OLD.id AS o, NEW.id AS n
            UNION ALL SELECT 'month', OLD.month, NEW.month
            UNION ALL SELECT 'kind', OLD.kind, NEW.kind
            UNION ALL SELECT 'name', OLD.name, NEW.name
            UNION ALL SELECT 'credits', OLD.credits, NEW.credits) WHERE o IS NOT n));
END;

CREATE TRIGGER audit_credit_grants_delete AFTER DELETE ON credit_grants BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'grant', OLD.name,
        json_object('id', OLD.id, 'month', OLD.month, 'kind', OLD.kind, 'name', OLD.name, 'credits', OLD.credits));
END;

CREATE TRIGGER audit_seal_keys_insert AFTER INSERT ON seal_keys BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', 'seal key', 'page',
        json_object('created_at', NEW.created_at));
END;

CREATE TRIGGER audit_seal_keys_update AFTER UPDATE ON seal_keys
WHEN (OLD.created_at, OLD.public)
    IS NOT (NEW.created_at, NEW.public) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', 'seal key', 'page',
        (SELECT json_group_object(k, json_array(o, n)) FROM (
            SELECT 'created_at' AS k, OLD.created_at AS o, NEW.created_at AS n
            UNION ALL SELECT 'public', substr(hex(OLD.public), 1, 8), substr(hex(NEW.public), 1, 8)) WHERE o IS NOT n));
END;

CREATE TRIGGER audit_seal_keys_delete AFTER DELETE ON seal_keys BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', 'seal key', 'page',
        json_object('created_at', OLD.created_at));
END;

-- The outbox and its triggers. See 00130_events.sql.

CREATE TABLE events (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    nonce    TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))), -- with seq it is the webhook-id
    endpoint TEXT NOT NULL,
    type     TEXT NOT NULL,
    subject  TEXT NOT NULL,               -- 'user:ada' or 'account:acme': the events of one are delivered in order
    data     TEXT NOT NULL,               -- JSON. No secret.
    made_at  BIGINT NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    state    TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'aside')),
    attempts BIGINT NOT NULL DEFAULT 0,
    first_at BIGINT,                      -- the first attempt
    next_at  BIGINT NOT NULL DEFAULT 0,   -- the next attempt, while it is pending
    ended_at BIGINT,                      -- when it was delivered or put aside
    problem  TEXT NOT NULL DEFAULT ''     -- of the last attempt
);
CREATE INDEX events_due ON events (endpoint, next_at, seq) WHERE state = 'pending';
CREATE INDEX events_subject ON events (subject, endpoint, state, seq);
CREATE INDEX events_ended ON events (state, ended_at) WHERE state <> 'pending';

-- A key that is made at the very millisecond at which a former one of its user ended replaces it:
-- that is one event, and not two.
CREATE TRIGGER events_keys_insert AFTER INSERT ON keys WHEN NEW.revoked_at IS NULL
    AND EXISTS (SELECT 1 FROM event_subscriptions WHERE type IN ('key.created', 'key.regenerated', 'key.revoked')) BEGIN
    DELETE FROM events WHERE subject = 'user:' || NEW.user_name AND state = 'pending' AND attempts = 0 AND type = 'key.revoked' AND data ->> 'key_id' =
        (SELECT min(id) FROM keys WHERE user_name = NEW.user_name AND id <> NEW.id AND revoked_at = NEW.created_at);
    INSERT INTO events (endpoint, type, subject, data)
        SELECT s.endpoint, s.type, 'user:' || NEW.user_name, CASE WHEN p.id IS NULL
            THEN json_object('user', NEW.user_name, 'account', (SELECT account FROM users WHERE name = NEW.user_name), 'key_id', NEW.id)
            ELSE json_object('user', NEW.user_name, 'account', (SELECT account FROM users WHERE name = NEW.user_name), 'key_id', NEW.id, 'previous_key_id', p.id) END
        FROM (SELECT min(id) AS id FROM keys WHERE user_name = NEW.user_name AND id <> NEW.id AND revoked_at = NEW.created_at) p
        JOIN event_subscriptions s ON s.type = (CASE WHEN p.id IS NULL THEN 'key.created' ELSE 'key.regenerated' END);
END;
CREATE TRIGGER events_keys_update AFTER UPDATE ON keys WHEN OLD.id = NEW.id AND OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL BEGIN
    INSERT INTO events (endpoint, type, subject, data)
        SELECT endpoint, type, 'user:' || NEW.user_name, json_object('user', NEW.user_name, 'account', (SELECT account FROM users WHERE name = NEW.user_name), 'key_id', NEW.id)
        FROM event_subscriptions WHERE type = 'key.revoked';
END;
CREATE TRIGGER events_keys_delete AFTER DELETE ON keys WHEN OLD.revoked_at IS NULL BEGIN
    INSERT INTO events (endpoint, type, subject, data)
        SELECT endpoint, type, 'user:' || OLD.user_name, json_object('user', OLD.user_name, 'account', (SELECT account FROM users WHERE name = OLD.user_name), 'key_id', OLD.id)
        FROM event_subscriptions WHERE type = 'key.revoked';
END;
CREATE TRIGGER events_accounts_update AFTER UPDATE ON accounts WHEN OLD.name = NEW.name AND (OLD.status <> NEW.status OR OLD.plan <> NEW.plan) BEGIN
    INSERT INTO events (endpoint, type, subject, data)
        SELECT endpoint, type, 'account:' || NEW.name, json_object('account', NEW.name, 'status', NEW.status, 'previous_status', OLD.status)
        FROM event_subscriptions WHERE OLD.status <> NEW.status AND type = (CASE NEW.status WHEN 'active' THEN 'account.resumed' ELSE 'account.' || NEW.status END);
    INSERT INTO events (endpoint, type, subject, data)
        SELECT endpoint, type, 'account:' || NEW.name, json_object('account', NEW.name, 'plan', NEW.plan, 'previous_plan', OLD.plan)
        FROM event_subscriptions WHERE OLD.plan <> NEW.plan AND type = 'account.plan_changed';
END;
CREATE TRIGGER events_credit_marks_insert AFTER INSERT ON credit_marks BEGIN
    INSERT INTO events (endpoint, type, subject, data)
        SELECT endpoint, type, NEW.kind || ':' || NEW.name, json_object(NEW.kind, NEW.name, 'month', printf('%d-%02d', NEW.month / 100, NEW.month % 100),
            'percent', NEW.percent, 'used', NEW.used, 'credits', NEW.credits)
        FROM event_subscriptions WHERE type = (CASE NEW.percent WHEN 100 THEN 'credits.exhausted' ELSE 'credits.low' END);
END;

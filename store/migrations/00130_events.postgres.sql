-- The outbox and its triggers. See 00130_events.sql.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE TABLE events (
    seq      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    nonce    TEXT NOT NULL DEFAULT (replace(gen_random_uuid()::TEXT, '-', '')), -- with seq it is the webhook-id
    endpoint TEXT NOT NULL,
    type     TEXT NOT NULL,
    subject  TEXT NOT NULL,               -- 'user:ada' or 'account:acme': the events of one are delivered in order
    data     TEXT NOT NULL,               -- JSON. No secret.
    made_at  BIGINT NOT NULL DEFAULT (changes_now()),
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
CREATE FUNCTION events_of_keys() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM event_subscriptions WHERE type IN ('key.created', 'key.regenerated', 'key.revoked')) THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        WITH made AS MATERIALIZED (
            SELECT n.id, n.user_name, u.account, (SELECT min(k.id) FROM keys k
                WHERE k.user_name = n.user_name AND k.id <> n.id AND k.revoked_at = n.created_at) AS previous
            FROM new_rows n LEFT JOIN users u ON u.name = n.user_name WHERE n.revoked_at IS NULL),
        ended AS (
            DELETE FROM events e USING made m WHERE m.previous IS NOT NULL AND e.subject = 'user:' || m.user_name
                AND e.state = 'pending' AND e.attempts = 0 AND e.type = 'key.revoked' AND e.data::JSONB ->> 'key_id' = m.previous)
        INSERT INTO events (endpoint, type, subject, data)
            SELECT s.endpoint, s.type, 'user:' || m.user_name, CASE WHEN m.previous IS NULL
                THEN json_build_object('user', m.user_name, 'account', m.account, 'key_id', m.id)
                ELSE json_build_object('user', m.user_name, 'account', m.account, 'key_id', m.id, 'previous_key_id', m.previous) END::TEXT
            FROM made m JOIN event_subscriptions s ON s.type = CASE WHEN m.previous IS NULL THEN 'key.created' ELSE 'key.regenerated' END;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO events (endpoint, type, subject, data)
            SELECT s.endpoint, s.type, 'user:' || n.user_name, json_build_object('user', n.user_name, 'account', u.account, 'key_id', n.id)::TEXT
            FROM new_rows n JOIN old_rows o ON o.id = n.id LEFT JOIN users u ON u.name = n.user_name JOIN event_subscriptions s ON s.type = 'key.revoked'
            WHERE o.revoked_at IS NULL AND n.revoked_at IS NOT NULL;
    ELSE
        INSERT INTO events (endpoint, type, subject, data)
            SELECT s.endpoint, s.type, 'user:' || o.user_name, json_build_object('user', o.user_name, 'account', u.account, 'key_id', o.id)::TEXT
            FROM old_rows o LEFT JOIN users u ON u.name = o.user_name JOIN event_subscriptions s ON s.type = 'key.revoked'
            WHERE o.revoked_at IS NULL;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION events_of_accounts() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM event_subscriptions WHERE type IN
            ('account.suspended', 'account.cancelled', 'account.resumed', 'account.plan_changed')) THEN
        RETURN NULL;
    END IF;
    INSERT INTO events (endpoint, type, subject, data)
        SELECT s.endpoint, s.type, 'account:' || c.name, c.data
        FROM (
            SELECT n.name, CASE n.status WHEN 'active' THEN 'account.resumed' ELSE 'account.' || n.status END AS type,
                json_build_object('account', n.name, 'status', n.status, 'previous_status', o.status)::TEXT AS data
            FROM new_rows n JOIN old_rows o ON o.name = n.name WHERE o.status <> n.status
            UNION ALL
            SELECT n.name, 'account.plan_changed', json_build_object('account', n.name, 'plan', n.plan, 'previous_plan', o.plan)::TEXT
            FROM new_rows n JOIN old_rows o ON o.name = n.name WHERE o.plan <> n.plan) c
        JOIN event_subscriptions s ON s.type = c.type;
    RETURN NULL;
END $$;

CREATE FUNCTION events_of_credits() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO events (endpoint, type, subject, data)
        SELECT s.endpoint, s.type, n.kind || ':' || n.name, json_build_object(n.kind, n.name, 'month', n.month / 100 || '-' || lpad((n.month % 100)::TEXT, 2, '0'),
            'percent', n.percent, 'used', n.used, 'credits', n.credits)::TEXT
        FROM new_rows n JOIN event_subscriptions s ON s.type = CASE n.percent WHEN 100 THEN 'credits.exhausted' ELSE 'credits.low' END
        ORDER BY n.percent;
    RETURN NULL;
END $$;

REVOKE EXECUTE ON FUNCTION events_of_keys(), events_of_accounts(), events_of_credits() FROM PUBLIC;

CREATE TRIGGER events_insert AFTER INSERT ON keys REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION events_of_keys();
CREATE TRIGGER events_update AFTER UPDATE ON keys REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION events_of_keys();
CREATE TRIGGER events_delete AFTER DELETE ON keys REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION events_of_keys();
CREATE TRIGGER events_update AFTER UPDATE ON accounts REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION events_of_accounts();
CREATE TRIGGER events_insert AFTER INSERT ON credit_marks REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION events_of_credits();
ALTER TABLE keys ENABLE ALWAYS TRIGGER events_insert, ENABLE ALWAYS TRIGGER events_update, ENABLE ALWAYS TRIGGER events_delete;
ALTER TABLE accounts ENABLE ALWAYS TRIGGER events_update;
ALTER TABLE credit_marks ENABLE ALWAYS TRIGGER events_insert;

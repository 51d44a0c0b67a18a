-- The change feed. Whatever changes what a decision depends on, by whoever and however, adds one row to
-- changes when it commits: an epoch, a random id, and the names of what it touches. Epochs are handed
-- out under a lock that is held until the commit is visible, so that who sees one sees all before it.

-- The functions below find our tables, whatever the caller's search path; pg_catalog comes first unnamed.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE SEQUENCE changes_epoch;

CREATE TABLE changes (
    epoch   BIGINT NOT NULL PRIMARY KEY,
    id      TEXT NOT NULL,   -- random: tells this history from another one that reached the same epoch
    what    TEXT NOT NULL,   -- 'user:ada plan:pro'; '*': everything; '': nothing
    made_at BIGINT NOT NULL
);

-- What the transactions that are under way have touched. Empty between transactions.
CREATE TABLE changes_pending (
    tx   BIGINT NOT NULL,
    what TEXT NOT NULL,
    PRIMARY KEY (tx, what)
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
    seen_at    BIGINT NOT NULL           -- its last word, by the clock of the database; for display alone
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

CREATE FUNCTION changes_now() RETURNS BIGINT LANGUAGE sql AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT $$;

CREATE FUNCTION changes_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    touched TEXT;
    next    BIGINT;
BEGIN
    WITH mine AS (DELETE FROM changes_pending WHERE tx = NEW.tx RETURNING what)
    SELECT CASE WHEN count(*) > 1000 THEN '*' ELSE string_agg(what, ' ') END INTO touched FROM mine;
    IF touched IS NULL THEN
        RETURN NULL; -- an earlier row of this transaction has taken them all along
    END IF;
    PERFORM pg_advisory_xact_lock(1262836048, 1); -- 'KEYP'
    next := nextval('changes_epoch');
    -- A move of the database by logical replication leaves sequences behind.
    IF next <= (SELECT max(epoch) FROM changes) THEN
        next := setval('changes_epoch', (SELECT max(epoch) FROM changes) + 1);
    END IF;
    INSERT INTO changes (epoch, id, what, made_at)
        VALUES (next, replace(gen_random_uuid()::TEXT, '-', ''), touched, changes_now());
    -- A full queue would make the commit fail, and this is only a hint.
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('keyporter', next::TEXT);
    END IF;
    RETURN NULL;
END $$;

-- At commit, once for all that the transaction has touched.
CREATE CONSTRAINT TRIGGER changes_commit AFTER INSERT ON changes_pending
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION changes_commit();

CREATE FUNCTION changes_everything() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO changes_pending (tx, what) VALUES (txid_current(), '*') ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- One function for each table notes what a statement has changed: the kind of thing to name, the column
-- with its name, and the columns that a decision depends on. A new plan, account, user or session
-- changes no answer that could have been given before it.
DO $$
DECLARE
    t RECORD;
    e TEXT;
BEGIN
    FOR t IN SELECT * FROM (VALUES
        ('plans',    'plan',    'name',      'name, api_access, rate_limit, rate_window, credits, pool', ARRAY['UPDATE', 'DELETE']),
        ('accounts', 'account', 'name',      'name, plan, status', ARRAY['UPDATE', 'DELETE']),
        ('users',    'user',    'name',      'name, account, status', ARRAY['UPDATE', 'DELETE']),
        ('keys',     'user',    'user_name', 'id, user_name, digest, revoked_at', ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('sessions', 'user',    'user_name', 'digest, user_name, expires_at, revoked_at', ARRAY['UPDATE', 'DELETE'])
    ) AS v (relation, kind, named, columns, events) LOOP
        EXECUTE format($function$
            CREATE FUNCTION changes_of_%1$s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $body$
            DECLARE
                touched TEXT[];
            BEGIN
                IF TG_OP = 'INSERT' THEN
                    touched := ARRAY(SELECT DISTINCT '%2$s:' || %3$s FROM new_rows LIMIT 1001);
                ELSIF TG_OP = 'DELETE' THEN
                    touched := ARRAY(SELECT DISTINCT '%2$s:' || %3$s FROM old_rows LIMIT 1001);
                ELSE
                    touched := ARRAY(SELECT DISTINCT '%2$s:' || %3$s FROM (
                        (SELECT %4$s FROM old_rows EXCEPT SELECT %4$s FROM new_rows)
                        UNION ALL
                        (SELECT %4$s FROM new_rows EXCEPT SELECT %4$s FROM old_rows)) changed LIMIT 1001);
                END IF;
                IF cardinality(touched) > 1000 THEN
                    touched := ARRAY['*'];
                END IF;
                INSERT INTO changes_pending (tx, what) SELECT txid_current(), unnest(touched) ON CONFLICT DO NOTHING;
                RETURN NULL;
            END $body$ $function$, t.relation, t.kind, t.named, t.columns);
        -- Nobody else may make triggers of their own that call it with the rights of its owner.
        EXECUTE format('REVOKE EXECUTE ON FUNCTION changes_of_%s() FROM PUBLIC', t.relation);
        FOREACH e IN ARRAY t.events LOOP
            EXECUTE format('CREATE TRIGGER changes_%s AFTER %s ON %I REFERENCING %s FOR EACH STATEMENT EXECUTE FUNCTION changes_of_%s()',
                lower(e), e, t.relation,
                CASE e WHEN 'INSERT' THEN 'NEW TABLE AS new_rows' WHEN 'DELETE' THEN 'OLD TABLE AS old_rows'
                    ELSE 'OLD TABLE AS old_rows NEW TABLE AS new_rows' END, t.relation);
            -- Also where session_replication_role is replica.
            EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER changes_%s', t.relation, lower(e));
        END LOOP;
        EXECUTE format('CREATE TRIGGER changes_truncate AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION changes_everything()', t.relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER changes_truncate', t.relation);
    END LOOP;
END $$;
ALTER TABLE changes_pending ENABLE ALWAYS TRIGGER changes_commit;

REVOKE EXECUTE ON FUNCTION changes_commit(), changes_everything() FROM PUBLIC;

-- The beginning of this history.
INSERT INTO changes (epoch, id, what, made_at)
    VALUES (nextval('changes_epoch'), replace(gen_random_uuid()::TEXT, '-', ''), '*', changes_now());

-- The change feed and the audit. Each change of data that a decision rests on adds one row to
-- changes when its transaction commits, whoever makes it: an epoch, a random id, and the names that
-- it touches. Epochs are handed out under a lock that is held until the commit is visible, so a
-- reader of an epoch sees all changes before it.

-- The functions below find our tables, whatever the caller's search path; pg_catalog comes first
-- unnamed.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE FUNCTION changes_now() RETURNS BIGINT LANGUAGE sql AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT $$;

CREATE SEQUENCE changes_epoch;

CREATE TABLE changes (
    epoch   BIGINT NOT NULL PRIMARY KEY,
    id      TEXT NOT NULL,   -- random: distinguishes histories that reach the same epoch
    what    TEXT NOT NULL,   -- 'user:ada plan:pro'; 'added': new rows alone; '*': everything; '': nothing
    made_at BIGINT NOT NULL
);

-- What the transactions under way have touched. Empty between transactions.
CREATE TABLE changes_pending (
    tx   BIGINT NOT NULL,
    what TEXT NOT NULL,
    PRIMARY KEY (tx, what)
);

-- The audit: the author, time and content of each change. Rows are never changed or deleted.
CREATE TABLE audit (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     BIGINT NOT NULL DEFAULT changes_now(),
    actor  TEXT NOT NULL,             -- 'page:ada', 'command:root', or 'sql:' and the database's user
    action TEXT NOT NULL,             -- created, changed, deleted, revealed
    kind   TEXT NOT NULL,             -- plan, account, user, key, session, login link, grant, seal key
    name   TEXT NOT NULL,             -- of the plan, account or user; '*': several
    detail TEXT NOT NULL              -- JSON: the row, or the old and new values. No secret.
);
CREATE INDEX audit_name ON audit (name, id);

-- The change feed --------------------------------------------------------------------------------

-- At commit, one change for all that the transaction has touched. Many statements in one
-- transaction leave as many rows: each is looked up first, by the index even in a session whose
-- plan is of a time when the table was empty, or the commit would take the square of them.
CREATE FUNCTION changes_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    touched TEXT;
    next    BIGINT;
BEGIN
    IF NOT EXISTS (SELECT FROM changes_pending WHERE tx = NEW.tx AND what = NEW.what) THEN
        RETURN NULL; -- an earlier row of this transaction has taken it along
    END IF;
    WITH mine AS (DELETE FROM changes_pending WHERE tx = NEW.tx RETURNING what)
    SELECT CASE WHEN count(*) > 1000 THEN '*' ELSE string_agg(what, ' ') END INTO touched FROM mine;
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

CREATE CONSTRAINT TRIGGER changes_commit AFTER INSERT ON changes_pending
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION changes_commit();
ALTER TABLE changes_pending ENABLE ALWAYS TRIGGER changes_commit;

CREATE FUNCTION changes_everything() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO changes_pending (tx, what) VALUES (txid_current(), '*') ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

REVOKE EXECUTE ON FUNCTION changes_commit(), changes_everything() FROM PUBLIC;

-- One function for each table records what a statement has changed: the name that a new row
-- touches, the name that a changed row touches, and the columns that a decision rests on. 'added'
-- touches only the answers that something does not exist. A new session changes no answer at all.
DO $$
DECLARE
    t RECORD;
    e TEXT;
BEGIN
    FOR t IN SELECT * FROM (VALUES
        ('plans',         $x$'added'$x$,             $x$'plan:' || name$x$,      'name, api_access, rate_limit, rate_window, credits, pool', ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('accounts',      $x$'added'$x$,             $x$'account:' || name$x$,   'name, plan, status', ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('users',         $x$'added'$x$,             $x$'user:' || name$x$,      'name, account, status, subject, not_before', ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('keys',          $x$'added'$x$,             $x$'user:' || user_name$x$, 'id, user_name, digest, revoked_at', ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('sessions',      'NULL',                    $x$'user:' || user_name$x$, 'digest, user_name, expires_at, revoked_at', ARRAY['UPDATE', 'DELETE']),
        ('credit_grants', $x$kind || ':' || name$x$, $x$kind || ':' || name$x$,  'month, kind, name, credits', ARRAY['INSERT', 'UPDATE', 'DELETE'])
    ) AS v (relation, added, named, columns, events) LOOP
        EXECUTE format($function$
            CREATE FUNCTION changes_of_%1$s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $body$
            DECLARE
                touched TEXT[];
            BEGIN
                IF TG_OP = 'INSERT' THEN
                    touched := ARRAY(SELECT DISTINCT %2$s FROM new_rows LIMIT 1001);
                ELSIF TG_OP = 'DELETE' THEN
                    touched := ARRAY(SELECT DISTINCT %3$s FROM old_rows LIMIT 1001);
                ELSE
                    touched := ARRAY(SELECT DISTINCT %3$s FROM (
                        (SELECT %4$s FROM old_rows EXCEPT ALL SELECT %4$s FROM new_rows)
                        UNION ALL
                        (SELECT %4$s FROM new_rows EXCEPT ALL SELECT %4$s FROM old_rows)) changed LIMIT 1001);
                END IF;
                IF cardinality(touched) > 1000 THEN
                    touched := ARRAY['*'];
                END IF;
                INSERT INTO changes_pending (tx, what) SELECT txid_current(), unnest(touched) ON CONFLICT DO NOTHING;
                RETURN NULL;
            END $body$ $function$, t.relation, t.added, t.named, t.columns);
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

-- A recall is announced, so that the holders of credits return at once what they do not need.
CREATE FUNCTION credits_recall() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('keyporter', 'credits');
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION credits_recall() FROM PUBLIC;
CREATE TRIGGER credits_recall AFTER INSERT OR UPDATE ON credit_recalls FOR EACH STATEMENT EXECUTE FUNCTION credits_recall();
ALTER TABLE credit_recalls ENABLE ALWAYS TRIGGER credits_recall;

-- The audit --------------------------------------------------------------------------------------

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit can only be added to';
END $$;
CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit ENABLE ALWAYS TRIGGER audit_no_change;

-- A row without secrets. Of a public key it shows four bytes, which tell two apart.
CREATE FUNCTION audit_shown(r JSONB) RETURNS JSONB LANGUAGE sql IMMUTABLE AS $$
    SELECT r - ARRAY['digest', 'sealed', 'public']
        || CASE WHEN r ? 'public' THEN jsonb_build_object('public', upper(substr(r ->> 'public', 3, 8))) ELSE '{}' END
$$;

-- Records what a statement has changed. Its arguments: the kind, the column with the name, and the
-- primary key. Bytes are text in hexadecimal, whatever the session wants.
CREATE FUNCTION audit_of_changes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET bytea_output = 'hex' AS $$
DECLARE
    author TEXT := coalesce(nullif(current_setting('keyporter.actor', true), ''), 'sql:' || session_user);
    many   BIGINT;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT count(*) INTO many FROM (SELECT 1 FROM new_rows LIMIT 1001) r;
    ELSIF TG_OP = 'TRUNCATE' THEN -- it is about to be emptied
        EXECUTE format('SELECT count(*) FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME) INTO many;
    ELSE
        SELECT count(*) INTO many FROM (SELECT 1 FROM old_rows LIMIT 1001) r;
    END IF;
    IF TG_OP = 'TRUNCATE' AND many > 0 THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            VALUES (author, 'deleted', TG_ARGV[0], '*', jsonb_build_object('rows', many)::TEXT);
    ELSIF many > 1000 THEN -- too many for a row each
        IF TG_OP = 'INSERT' THEN
            SELECT count(*) INTO many FROM new_rows;
        ELSE
            SELECT count(*) INTO many FROM old_rows;
        END IF;
        INSERT INTO audit (actor, action, kind, name, detail) VALUES (author,
            CASE TG_OP WHEN 'INSERT' THEN 'created' WHEN 'DELETE' THEN 'deleted' ELSE 'changed' END,
            TG_ARGV[0], '*', jsonb_build_object('rows', many)::TEXT);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            SELECT author, 'created', TG_ARGV[0], coalesce(to_jsonb(r) ->> TG_ARGV[1], 'page'), audit_shown(to_jsonb(r))::TEXT FROM new_rows r;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            SELECT author, 'deleted', TG_ARGV[0], coalesce(to_jsonb(r) ->> TG_ARGV[1], 'page'), audit_shown(to_jsonb(r))::TEXT FROM old_rows r;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            SELECT author, 'changed', TG_ARGV[0], coalesce(n ->> TG_ARGV[1], o ->> TG_ARGV[1], 'page'),
                (coalesce((SELECT jsonb_object_agg(k, jsonb_build_array(o -> k, n -> k))
                    FROM jsonb_object_keys(coalesce(n, o)) k WHERE o -> k IS DISTINCT FROM n -> k), '{}')
                    -- A digest is shown as replaced, never itself.
                    || CASE WHEN od IS DISTINCT FROM nd THEN '{"digest": "replaced"}'::JSONB ELSE '{}' END)::TEXT
            FROM (SELECT to_jsonb(r) ->> TG_ARGV[2] AS id, audit_shown(to_jsonb(r)) AS o, to_jsonb(r) ->> 'digest' AS od FROM old_rows r) before
            FULL JOIN (SELECT to_jsonb(r) ->> TG_ARGV[2] AS id, audit_shown(to_jsonb(r)) AS n, to_jsonb(r) ->> 'digest' AS nd FROM new_rows r) after USING (id)
            WHERE o IS DISTINCT FROM n OR od IS DISTINCT FROM nd;
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION audit_of_changes() FROM PUBLIC;

DO $$
DECLARE
    t RECORD;
    e TEXT;
BEGIN
    FOR t IN SELECT * FROM (VALUES
        ('plans',         'plan',       'name',      'name',   ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('accounts',      'account',    'name',      'name',   ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('users',         'user',       'name',      'name',   ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('keys',          'key',        'user_name', 'id',     ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('sessions',      'session',    'user_name', 'digest', ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('login_links',   'login link', 'user_name', 'digest', ARRAY['INSERT', 'UPDATE']), -- old ones are tidied away
        ('credit_grants', 'grant',      'name',      'id',     ARRAY['INSERT', 'UPDATE', 'DELETE']),
        ('seal_keys',     'seal key',   '',          'id',     ARRAY['INSERT', 'UPDATE', 'DELETE'])
    ) AS v (relation, kind, named, key, events) LOOP
        FOREACH e IN ARRAY t.events LOOP
            EXECUTE format('CREATE TRIGGER audit_%s AFTER %s ON %I REFERENCING %s FOR EACH STATEMENT EXECUTE FUNCTION audit_of_changes(%L, %L, %L)',
                lower(e), e, t.relation,
                CASE e WHEN 'INSERT' THEN 'NEW TABLE AS new_rows' WHEN 'DELETE' THEN 'OLD TABLE AS old_rows'
                    ELSE 'OLD TABLE AS old_rows NEW TABLE AS new_rows' END, t.kind, t.named, t.key);
            EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER audit_%s', t.relation, lower(e));
        END LOOP;
        EXECUTE format('CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_of_changes(%L)', t.relation, t.kind);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER audit_truncate', t.relation);
    END LOOP;
END $$;

-- The beginning of this history.
INSERT INTO changes (epoch, id, what, made_at)
    VALUES (nextval('changes_epoch'), replace(gen_random_uuid()::TEXT, '-', ''), '*', changes_now());

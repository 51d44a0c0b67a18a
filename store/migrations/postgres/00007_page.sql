-- The users' page: login links, who a user is to the provider's web app, and the audit. Whatever
-- changes what a decision depends on is named in the change feed, as before.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

ALTER TABLE users ADD COLUMN subject TEXT CHECK (octet_length(subject) BETWEEN 1 AND 255); -- what the web app calls them
ALTER TABLE users ADD COLUMN not_before BIGINT NOT NULL DEFAULT 0;  -- the web app's tokens of before open nothing
CREATE UNIQUE INDEX users_subject ON users (subject);

CREATE OR REPLACE FUNCTION changes_of_users() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    touched TEXT[];
BEGIN
    IF TG_OP = 'DELETE' THEN
        touched := ARRAY(SELECT DISTINCT 'user:' || name FROM old_rows LIMIT 1001);
    ELSE
        touched := ARRAY(SELECT DISTINCT 'user:' || name FROM (
            (SELECT name, account, status, subject, not_before FROM old_rows EXCEPT SELECT name, account, status, subject, not_before FROM new_rows)
            UNION ALL
            (SELECT name, account, status, subject, not_before FROM new_rows EXCEPT SELECT name, account, status, subject, not_before FROM old_rows)) changed LIMIT 1001);
    END IF;
    IF cardinality(touched) > 1000 THEN
        touched := ARRAY['*'];
    END IF;
    INSERT INTO changes_pending (tx, what) SELECT txid_current(), unnest(touched) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

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
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     BIGINT NOT NULL DEFAULT changes_now(),
    actor  TEXT NOT NULL,             -- 'page:ada', 'command:root', or 'sql:' and the database's user
    action TEXT NOT NULL,             -- created, changed, deleted, revealed
    kind   TEXT NOT NULL,             -- plan, account, user, key, session, login link, grant, seal key
    name   TEXT NOT NULL,             -- of the plan or account, or of the user whose it is; '*': of many
    detail TEXT NOT NULL              -- JSON: the row, or of what changed the old and the new value. No secret.
);
CREATE INDEX audit_name ON audit (name, id);

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit can only be added to';
END $$;
CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit ENABLE ALWAYS TRIGGER audit_no_change;

-- A row without what must not be told. Of a public key four bytes are kept, which tell two apart.
CREATE FUNCTION audit_shown(r JSONB) RETURNS JSONB LANGUAGE sql IMMUTABLE AS $$
    SELECT r - ARRAY['digest', 'sealed', 'public']
        || CASE WHEN r ? 'public' THEN jsonb_build_object('public', upper(substr(r ->> 'public', 3, 8))) ELSE '{}' END
$$;

-- What a statement has changed. Its arguments: the kind, the column that names it, and the primary key. Bytes
-- are text in hexadecimal, whatever the session wants.
CREATE FUNCTION audit_of_changes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET bytea_output = 'hex' AS $$
DECLARE
    who   TEXT := coalesce(nullif(current_setting('keyporter.actor', true), ''), 'sql:' || session_user);
    many  BIGINT;
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
            VALUES (who, 'deleted', TG_ARGV[0], '*', jsonb_build_object('rows', many)::TEXT);
    ELSIF many > 1000 THEN -- too many to tell of each
        IF TG_OP = 'INSERT' THEN
            SELECT count(*) INTO many FROM new_rows;
        ELSE
            SELECT count(*) INTO many FROM old_rows;
        END IF;
        INSERT INTO audit (actor, action, kind, name, detail) VALUES (who,
            CASE TG_OP WHEN 'INSERT' THEN 'created' WHEN 'DELETE' THEN 'deleted' ELSE 'changed' END,
            TG_ARGV[0], '*', jsonb_build_object('rows', many)::TEXT);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            SELECT who, 'created', TG_ARGV[0], coalesce(to_jsonb(r) ->> TG_ARGV[1], 'page'), audit_shown(to_jsonb(r))::TEXT FROM new_rows r;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            SELECT who, 'deleted', TG_ARGV[0], coalesce(to_jsonb(r) ->> TG_ARGV[1], 'page'), audit_shown(to_jsonb(r))::TEXT FROM old_rows r;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO audit (actor, action, kind, name, detail)
            SELECT who, 'changed', TG_ARGV[0], coalesce(n ->> TG_ARGV[1], o ->> TG_ARGV[1], 'page'),
                (coalesce((SELECT jsonb_object_agg(k, jsonb_build_array(o -> k, n -> k))
                    FROM jsonb_object_keys(coalesce(n, o)) k WHERE o -> k IS DISTINCT FROM n -> k), '{}')
                    -- That a digest is another is told, and neither of the two.
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
        ('login_links',   'login link', 'user_name', 'digest', ARRAY['INSERT', 'UPDATE']), -- deleted when it is long over
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

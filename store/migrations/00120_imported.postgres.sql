-- A new key of another system is 'imported:NUMBER' in the change feed. Like 'added', that touches
-- only the answers that something does not exist; it also tells replicas which keys to read. A key
-- that becomes imported, or another one, does both.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE OR REPLACE FUNCTION changes_of_keys() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    touched TEXT[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        touched := ARRAY(SELECT DISTINCT coalesce('imported:' || imported, 'added') FROM new_rows LIMIT 1001);
    ELSIF TG_OP = 'DELETE' THEN
        touched := ARRAY(SELECT DISTINCT 'user:' || user_name FROM old_rows LIMIT 1001);
    ELSE
        touched := ARRAY(SELECT DISTINCT 'user:' || user_name FROM (
            (SELECT id, user_name, digest, revoked_at, imported FROM old_rows EXCEPT ALL SELECT id, user_name, digest, revoked_at, imported FROM new_rows)
            UNION ALL
            (SELECT id, user_name, digest, revoked_at, imported FROM new_rows EXCEPT ALL SELECT id, user_name, digest, revoked_at, imported FROM old_rows)) changed
            UNION
            SELECT 'imported:' || imported FROM (SELECT digest, imported FROM new_rows EXCEPT SELECT digest, imported FROM old_rows) moved
            WHERE imported IS NOT NULL LIMIT 1001);
    END IF;
    IF cardinality(touched) > 1000 THEN
        touched := ARRAY['*'];
    END IF;
    INSERT INTO changes_pending (tx, what) SELECT txid_current(), unnest(touched) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION changes_of_keys() FROM PUBLIC;

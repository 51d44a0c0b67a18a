-- A grant is a change like any other: it goes through the change feed.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE FUNCTION changes_of_credit_grants() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    touched TEXT[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        touched := ARRAY(SELECT DISTINCT kind || ':' || name FROM new_rows LIMIT 1001);
    ELSIF TG_OP = 'DELETE' THEN
        touched := ARRAY(SELECT DISTINCT kind || ':' || name FROM old_rows LIMIT 1001);
    ELSE
        touched := ARRAY(SELECT DISTINCT kind || ':' || name FROM (
            (SELECT month, kind, name, credits FROM old_rows EXCEPT ALL SELECT month, kind, name, credits FROM new_rows)
            UNION ALL
            (SELECT month, kind, name, credits FROM new_rows EXCEPT ALL SELECT month, kind, name, credits FROM old_rows)) changed LIMIT 1001);
    END IF;
    IF cardinality(touched) > 1000 THEN
        touched := ARRAY['*'];
    END IF;
    INSERT INTO changes_pending (tx, what) SELECT txid_current(), unnest(touched) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION changes_of_credit_grants() FROM PUBLIC;

CREATE TRIGGER changes_insert AFTER INSERT ON credit_grants REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION changes_of_credit_grants();
CREATE TRIGGER changes_update AFTER UPDATE ON credit_grants REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION changes_of_credit_grants();
CREATE TRIGGER changes_delete AFTER DELETE ON credit_grants REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION changes_of_credit_grants();
CREATE TRIGGER changes_truncate AFTER TRUNCATE ON credit_grants FOR EACH STATEMENT EXECUTE FUNCTION changes_everything();
ALTER TABLE credit_grants ENABLE ALWAYS TRIGGER changes_insert;
ALTER TABLE credit_grants ENABLE ALWAYS TRIGGER changes_update;
ALTER TABLE credit_grants ENABLE ALWAYS TRIGGER changes_delete;
ALTER TABLE credit_grants ENABLE ALWAYS TRIGGER changes_truncate;

-- A recall is announced, so that those who hold credits give back at once what they do not need.
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

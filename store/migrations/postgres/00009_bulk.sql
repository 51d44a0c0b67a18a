-- Many statements in one transaction, such as the import of 200,000 users, left as many rows to
-- changes_commit as they touched, and each of them was looked for among all that had been taken along
-- before: the commit took the square of it. The row itself is looked for now, first, and by the index even in
-- a session whose plan is of a time when the table was empty, as it is between transactions.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE OR REPLACE FUNCTION changes_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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

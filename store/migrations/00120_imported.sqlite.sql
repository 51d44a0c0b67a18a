-- A new key of another system is 'imported:NUMBER' in the change feed. Like 'added', that touches
-- only the answers that something does not exist; it also tells replicas which keys to read. A key
-- that becomes imported, or another one, does both.
DROP TRIGGER changes_keys_replace;
CREATE TRIGGER changes_keys_replace BEFORE INSERT ON keys BEGIN
    INSERT INTO changes (what) SELECT 'user:' || user_name FROM keys
        WHERE (rowid = NEW.rowid OR id = NEW.id OR digest = NEW.digest OR user_name = NEW.user_name AND revoked_at IS NULL AND NEW.revoked_at IS NULL)
            AND (id, user_name, digest, revoked_at, imported) IS NOT (NEW.id, NEW.user_name, NEW.digest, NEW.revoked_at, NEW.imported);
END;

DROP TRIGGER changes_keys_insert;
CREATE TRIGGER changes_keys_insert AFTER INSERT ON keys BEGIN
    INSERT INTO changes (what) VALUES (coalesce('imported:' || NEW.imported, 'added'));
END;

DROP TRIGGER changes_keys_update;
CREATE TRIGGER changes_keys_update AFTER UPDATE ON keys
WHEN (OLD.id, OLD.user_name, OLD.digest, OLD.revoked_at, OLD.imported)
    IS NOT (NEW.id, NEW.user_name, NEW.digest, NEW.revoked_at, NEW.imported) BEGIN
    INSERT INTO changes (what) VALUES ('user:' || OLD.user_name || ' ' || 'user:' || NEW.user_name || coalesce(' imported:' || NEW.imported, ''));
END;

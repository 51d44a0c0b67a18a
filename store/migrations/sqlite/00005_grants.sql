-- A grant is a change like any other: it goes through the change feed.

CREATE TRIGGER changes_credit_grants_replace BEFORE INSERT ON credit_grants BEGIN
    INSERT INTO changes (what) SELECT kind || ':' || name FROM credit_grants WHERE id = NEW.id;
END;
CREATE TRIGGER changes_credit_grants_insert AFTER INSERT ON credit_grants BEGIN
    INSERT INTO changes (what) VALUES (NEW.kind || ':' || NEW.name);
END;
CREATE TRIGGER changes_credit_grants_move BEFORE UPDATE OF id ON credit_grants BEGIN
    INSERT INTO changes (what) SELECT kind || ':' || name FROM credit_grants WHERE id = NEW.id AND id <> OLD.id;
END;
CREATE TRIGGER changes_credit_grants_update AFTER UPDATE ON credit_grants
WHEN (OLD.month, OLD.kind, OLD.name, OLD.credits) IS NOT (NEW.month, NEW.kind, NEW.name, NEW.credits) BEGIN
    INSERT INTO changes (what) VALUES (OLD.kind || ':' || OLD.name || ' ' || NEW.kind || ':' || NEW.name);
END;
CREATE TRIGGER changes_credit_grants_delete AFTER DELETE ON credit_grants BEGIN
    INSERT INTO changes (what) VALUES (OLD.kind || ':' || OLD.name);
END;

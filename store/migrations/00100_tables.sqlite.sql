-- The change feed. Each change of data that a decision rests on adds rows to changes in the same
-- transaction, whoever makes it: an epoch, a random id, and the names that it touches. There is one
-- writer at a time, so a reader of an epoch sees all changes before it.
CREATE TABLE changes (
    epoch   INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id      TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))), -- distinguishes histories that reach the same epoch
    what    TEXT NOT NULL,   -- 'user:ada plan:pro'; 'added': new rows alone; '*': everything; '': nothing
    made_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);

-- The audit: the author, time and content of each change. Rows are never changed or deleted.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    at     BIGINT NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    actor  TEXT NOT NULL,             -- 'page:ada', 'command:root', or 'sql'
    action TEXT NOT NULL,             -- created, changed, deleted, revealed
    kind   TEXT NOT NULL,             -- plan, account, user, key, session, login link, grant, seal key
    name   TEXT NOT NULL,             -- of the plan, account or user; '*': several
    detail TEXT NOT NULL              -- JSON: the row, or the old and new values. No secret.
);
CREATE INDEX audit_name ON audit (name, id);

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit can only be added to'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit can only be added to'); END;
CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'the audit can only be added to');
END;

-- The author of the transaction that writes, from its beginning to just before its end; else empty.
CREATE TABLE audit_actor (
    id    INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    actor TEXT NOT NULL
);

-- The beginning of this history.
INSERT INTO changes (what) VALUES ('*');

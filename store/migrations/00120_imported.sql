-- Keys of other systems. See 00100_tables.sql for the other columns.

-- The import that has brought the key: any number, the same for all keys of one import, so that
-- replicas read the new ones alone. NULL: the key has our own format.
ALTER TABLE keys ADD COLUMN imported BIGINT;
CREATE INDEX keys_imported ON keys (imported, digest) WHERE imported IS NOT NULL;

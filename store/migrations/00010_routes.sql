-- Which route table a replica decides by: the beginning of a hash, for display alone. A replica
-- reads its table from a file of its own, so this is how one sees that all have the same.

-- +goose Up
ALTER TABLE replicas ADD COLUMN routes TEXT NOT NULL DEFAULT '';

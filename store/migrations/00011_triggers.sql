-- +goose Up

-- What our triggers are, as the migrations made them: one that was replaced since then, or whose
-- function was, may record nothing.
CREATE TABLE trigger_definitions (
    name       TEXT NOT NULL PRIMARY KEY, -- TABLE.TRIGGER; on SQLite, which has no two of one name, TRIGGER
    definition TEXT NOT NULL
);

-- A statement is read in pages, by time.

-- +goose Up
DROP INDEX credit_refunds_user;
CREATE INDEX credit_refunds_user_time ON credit_refunds (month, user_name, made_at, charge);

-- Usage by account. See 00100_tables.sql for the other columns.

-- The account that the user of a block belonged to when the process last reported the block; '' for
-- a pool of an account, and for a block that only older builds have reported.
ALTER TABLE credit_blocks ADD COLUMN account TEXT NOT NULL DEFAULT '';
UPDATE credit_blocks SET account = (SELECT u.account FROM users u WHERE u.name = credit_blocks.name)
    WHERE kind = 'user' AND name IN (SELECT name FROM users);
CREATE INDEX credit_blocks_account ON credit_blocks (month, kind, account);

-- The statement of an account lists refunds by time.
CREATE INDEX credit_refunds_account_time ON credit_refunds (month, account, made_at, charge, total);
DROP INDEX credit_refunds_account;

-- The credits that each user was charged and refunded on a day such as 20261124, in UTC, by
-- account. The figures are the ledger's: those of a month add up to its sums. A posting after the
-- month of its charge counts on the last day of that month.
CREATE TABLE credit_daily (
    user_name TEXT NOT NULL,
    day       BIGINT NOT NULL,
    account   TEXT NOT NULL,           -- of the user at that time; '': unknown
    used      BIGINT NOT NULL,
    refunded  BIGINT NOT NULL,
    PRIMARY KEY (user_name, day, account)
);
CREATE INDEX credit_daily_account ON credit_daily (day, account);

-- What older builds have counted, and count while they run beside this one, stays in credit_days.
-- The housekeeping moves it from there in small steps, for the account that the user then has.

-- The requests of each user on a day such as 20261124, in UTC, by the reason of their decision, as
-- Envoy's access log reports them. Best effort: some may be missing.
CREATE TABLE request_outcomes (
    user_name TEXT NOT NULL,
    day       BIGINT NOT NULL,
    reason    TEXT NOT NULL,
    requests  BIGINT NOT NULL,
    PRIMARY KEY (user_name, day, reason)
);
CREATE INDEX request_outcomes_day ON request_outcomes (day);

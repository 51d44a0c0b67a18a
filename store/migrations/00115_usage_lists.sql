-- Lists of usage read one account's users in order, a page at a time.
CREATE INDEX credit_usages_account_user ON credit_usages (month, account, user_name);
DROP INDEX credit_usages_account;
CREATE INDEX credit_refunds_account_user ON credit_refunds (month, account, user_name);
CREATE INDEX credit_blocks_account_user ON credit_blocks (month, kind, account, name);
DROP INDEX credit_blocks_account;

-- Of an account's refunds, its usage asks only for those of charges without an outcome; the pool
-- has the sum of all.
CREATE INDEX credit_refunds_unreported ON credit_refunds (month, account) WHERE cause = 'unreported';

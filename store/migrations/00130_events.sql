-- Events for webhooks. See docs/events.md. Times are Unix milliseconds, UTC. A row of events is one
-- event for one endpoint; triggers write it in the transaction of the change that it reports, and
-- only for endpoints that are subscribed to its type. Without webhooks there are no rows.

-- The endpoints of the replica that delivers. Their URLs and secrets stay in its files.
CREATE TABLE event_endpoints (
    name        TEXT NOT NULL PRIMARY KEY,
    target      TEXT NOT NULL,           -- the beginning of the SHA-256 of its URL: another URL makes a disabled endpoint work again
    disabled_at BIGINT                   -- it answered 410 Gone; NULL: it works
);

CREATE TABLE event_subscriptions (
    type     TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    PRIMARY KEY (type, endpoint)
);

-- The replica that delivers. The fence grows when another one takes over, and makes what the former
-- one reports afterwards count for nothing.
CREATE TABLE event_lease (
    id     BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    holder TEXT NOT NULL,
    fence  BIGINT NOT NULL,
    until  BIGINT NOT NULL                -- by the clock of the database
);
INSERT INTO event_lease (id, holder, fence, until) VALUES (1, '', 0, 0);

-- The shares of pools whose use was reported, so that each is reported once in its month.
CREATE TABLE credit_marks (
    month   BIGINT NOT NULL,
    kind    TEXT NOT NULL CHECK (kind IN ('user', 'account')),
    name    TEXT NOT NULL,
    percent BIGINT NOT NULL CHECK (percent IN (80, 100)),
    used    BIGINT NOT NULL,             -- in the pool, less what was refunded
    credits BIGINT NOT NULL,             -- the pool's limit at that moment
    PRIMARY KEY (month, kind, name, percent)
);

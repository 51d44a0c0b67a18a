-- A table of your own in PostgreSQL with keys in clear: psql --no-psqlrc --file table.sql > keys.csv
-- The keys stay where they are; the file holds their SHA-256.
COPY (
    SELECT owner AS "user", owner AS account, 'pro' AS plan,
        encode(sha256(convert_to(key, 'UTF8')), 'hex') AS key_sha256,
        CASE WHEN revoked THEN 'revoked' ELSE 'active' END AS key_status
    FROM api_keys ORDER BY owner, created_at DESC
) TO STDOUT WITH (FORMAT csv, HEADER);

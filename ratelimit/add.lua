-- Counts requests of one user that were admitted without Valkey. A repeated report counts once.
-- KEYS: the user's log; the record of each request. ARGV: the window; for each request its age and
-- a unique name. Times are in microseconds.
local log, window = KEYS[1], tonumber(ARGV[1])
for i = 2, #KEYS do
  local age, name = tonumber(ARGV[2 * i - 2]), ARGV[2 * i - 1]
  -- A request with a record was also counted here, a few seconds ago; only the answer was lost.
  if age < window and redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('ZADD', log, text(now - age), name)
    redis.call('PEXPIRE', log, text(window / 1000 + 1))
  end
end
return 0

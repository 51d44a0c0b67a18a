-- Counts requests of one user that were admitted without asking. What is told twice counts once.
-- KEYS: the user's log; the record of each request. ARGV: the window; for each request how long ago it was
-- admitted, in microseconds, and a name for it.
local log, window = KEYS[1], tonumber(ARGV[1])
for i = 2, #KEYS do
  local age, name = tonumber(ARGV[2 * i - 2]), ARGV[2 * i - 1]
  -- One with a record was counted here as well, a few seconds ago, and only the answer was lost.
  if age < window and redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('ZADD', log, text(now - age), name)
    redis.call('PEXPIRE', log, text(window / 1000 + 1))
  end
end
return 0

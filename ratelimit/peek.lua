-- Returns how many requests of a user count in the window before now. It changes nothing.
-- KEYS: the user's log. ARGV: the limit; the window in microseconds.
-- Returns the number of requests; the microseconds until there is room.
local log, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])

-- As in admit.lua: if the clock was set back, the newest request counts as one of now.
local newest = tonumber(redis.call('ZRANGE', log, -1, -1, 'WITHSCORES')[2])
if newest and newest > now then
  now = newest
end
local counted = redis.call('ZCOUNT', log, '(' .. text(now - window), '+inf')
local reset = 0
if counted > 0 and limit > 0 then
  local from = redis.call('ZCARD', log) - counted + math.max(0, counted - limit)
  reset = redis.call('ZRANGE', log, from, from, 'WITHSCORES')[2] + window - now
end
return { counted, reset }

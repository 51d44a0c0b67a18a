-- Counts a request unless as many as the limit were counted in the window before it.
-- With a limit below 0 none are counted, and the request is remembered.
-- KEYS: the user's log, a sorted set of requests by time; the record of this request; the identity.
-- ARGV: the limit; the window; the request; how long it may come again; its charge; the identity that the
-- caller knows. Times are in microseconds.
-- Returns 0 refused, 1 admitted, 2 admitted before, -1 another identity; how many more fit; the time until
-- there is room; the charge of the first Check.
local log, record = KEYS[1], KEYS[2]
local limit, window, request, again = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

if redis.call('HGET', KEYS[3], 'name') ~= ARGV[6] then
  return { -1, 0, 0, '' }
end

-- The clock was set back: what is counted moves with it, as if the newest request were of now. So nothing
-- leaves early, and nobody waits for longer than a window.
local newest = tonumber(redis.call('ZRANGE', log, -1, -1, 'WITHSCORES')[2])
if newest and newest > now then
  local counted = redis.call('ZRANGE', log, 0, -1, 'WITHSCORES')
  for i = 1, #counted, 2 do
    redis.call('ZADD', log, text(counted[i + 1] - (newest - now)), counted[i])
  end
  redis.call('PEXPIRE', log, text(window / 1000 + 1))
end

redis.call('ZREMRANGEBYSCORE', log, '-inf', text(now - window))
local counted = redis.call('ZCARD', log)
local first = redis.call('HMGET', record, 'at', 'charge')
local verdict, charge = 0, ''
if first[1] and math.abs(now - first[1]) < again then -- the clock may have been set
  redis.call('HSET', record, 'twice', '1')
  verdict, charge = 2, first[2]
elseif limit < 0 or counted < limit then
  if limit >= 0 then
    -- The time is part of the name, since the same id may be another request much later.
    redis.call('ZADD', log, text(now), text(now) .. ':' .. request)
    redis.call('PEXPIRE', log, text(window / 1000 + 1))
    counted = counted + 1
  end
  redis.call('DEL', record)
  redis.call('HSET', record, 'at', text(now), 'charge', ARGV[5])
  redis.call('PEXPIRE', record, text(again / 1000))
  verdict = 1
end

-- There is room when the oldest of the newest limit requests leaves.
local reset = 0
if counted > 0 and limit > 0 then
  local from = math.max(0, counted - limit)
  reset = redis.call('ZRANGE', log, from, from, 'WITHSCORES')[2] + window - now
end
return { verdict, math.max(0, limit - counted), reset, charge }

-- Counts requests, each unless its limit was reached in the window before it. A request with a
-- limit below 0 is remembered, but not counted.
-- KEYS: the identity; for each request the user's log, a sorted set of requests by time, and the
-- record of the request: o (admitted once) or t (admitted twice), its time, a colon, its charge.
-- ARGV: the identity that the caller knows; for how many milliseconds any request may be repeated;
-- for each request its limit, its window in microseconds, its name, its charge, and for how many
-- milliseconds it may be repeated.
-- Returns for each request 0 refused, 1 admitted, 2 admitted before; how many more requests fit;
-- the microseconds until there is room; the charge of the first Check. Returns -1 alone if the
-- identity differs, or if another server process has taken over the memory and Identity has not
-- been called since.
local known = redis.call('HMGET', KEYS[1], 'name', 'run')
if known[1] ~= ARGV[1] or known[2] ~= run_id() then
  return { -1 }
end
local longest, moment = ARGV[2] * 1000, text(now)

-- The clock was set back: the counted requests move with it, so that the newest one has the time
-- now. So nothing leaves early, and nobody waits longer than a window.
local function move(log, window, by)
  local counted = redis.call('ZRANGE', log, 0, -1, 'WITHSCORES')
  for i = 1, #counted, 2 do
    redis.call('ZADD', log, text(counted[i + 1] - by), counted[i])
  end
  redis.call('PEXPIRE', log, text(window / 1000 + 1))
end

local answers = {}
local function count(log, record, limit, window, request, charge, again)
  local newest = tonumber(redis.call('ZRANGE', log, -1, -1, 'WITHSCORES')[2])
  if newest and newest > now then
    move(log, window, newest - now)
  end
  redis.call('ZREMRANGEBYSCORE', log, '-inf', text(now - window))
  local counted = redis.call('ZCARD', log)
  local at, first = string.match(redis.call('GET', record) or '', '^%a(%d+):(.*)$')
  local verdict, charged = 0, ''
  -- The record is there as long as the request may be repeated. But if the clock was set back, it
  -- stays for longer.
  if at and math.abs(now - at) < longest then
    redis.call('SET', record, 't' .. at .. ':' .. first, 'KEEPTTL')
    verdict, charged = 2, first
  elseif limit < 0 or counted < limit then
    if limit >= 0 then
      -- The time is part of the name, because the same id may be another request much later.
      redis.call('ZADD', log, moment, moment .. ':' .. request)
      redis.call('PEXPIRE', log, text(window / 1000 + 1))
      counted = counted + 1
    end
    redis.call('SET', record, 'o' .. moment .. ':' .. charge, 'PX', again)
    verdict = 1
  end

  -- There is room when the oldest of the newest limit requests leaves.
  local reset = 0
  if counted > 0 and limit > 0 then
    local from = math.max(0, counted - limit)
    reset = redis.call('ZRANGE', log, from, from, 'WITHSCORES')[2] + window - now
  end
  local n = #answers
  answers[n + 1], answers[n + 2], answers[n + 3], answers[n + 4] = verdict, math.max(0, limit - counted), reset, charged
end

local each = 3
for i = 2, #KEYS, 2 do
  count(KEYS[i], KEYS[i + 1], tonumber(ARGV[each]), tonumber(ARGV[each + 1]), ARGV[each + 2], ARGV[each + 3], ARGV[each + 4])
  each = each + 5
end
return answers

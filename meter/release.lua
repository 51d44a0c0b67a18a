-- Takes back a request, unless it was admitted twice.
-- KEYS: the user's log; the record of the request. ARGV: the request.
-- Returns 1 if it stands, since it was admitted twice; else 0.
local times, at = string.match(redis.call('GET', KEYS[2]) or '', '^(%a)(%d+):')
if times == 't' then
  return 1
end
if at then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], at .. ':' .. ARGV[1])
end
return 0

-- Takes back a request, unless it was admitted twice.
-- KEYS: the user's log; the record of the request. ARGV: the request.
-- Returns 1 if it stands, since it was admitted twice; else 0.
local first = redis.call('HMGET', KEYS[2], 'at', 'twice')
if first[2] then
  return 1
end
if first[1] then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], first[1] .. ':' .. ARGV[1])
end
return 0

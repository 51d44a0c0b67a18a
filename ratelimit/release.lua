-- Takes a request back, unless it was admitted twice, or may have been: that is unknown for one
-- without a record.
-- KEYS: the user's log; the record of the request. ARGV: the request.
-- Returns 1 if the request stands; else 0.
local times, at = string.match(redis.call('GET', KEYS[2]) or '', '^(%a)(%d+):')
if times ~= 'o' then
  return 1
end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], at .. ':' .. ARGV[1])
return 0

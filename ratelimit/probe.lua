-- Tries each command that the other scripts call, on keys of its own, so that a user without a
-- right is found before the first request.
-- KEYS: of a hash, of a sorted set, of a text.
-- Returns the refused commands, and the server's error for the first one.
local hash, set, record = KEYS[1], KEYS[2], KEYS[3]
local calls = {
  { 'HSET', hash, 'field', '1' }, { 'HMGET', hash, 'field' },
  { 'ZADD', set, '1', 'member' }, { 'ZRANGE', set, '0', '-1', 'WITHSCORES' }, { 'ZCOUNT', set, '-inf', '+inf' }, { 'ZCARD', set },
  { 'ZREMRANGEBYSCORE', set, '-inf', '0' }, { 'PEXPIRE', set, '1000' }, { 'ZREM', set, 'member' },
  { 'SET', record, '1', 'PX', '1000' }, { 'SET', record, '1', 'KEEPTTL' }, { 'GET', record }, { 'EXISTS', record },
  { 'DEL', hash, set, record },
}
local refused, why = {}, ''
for _, call in ipairs(calls) do
  local answer = redis.pcall(unpack(call))
  if type(answer) == 'table' and answer.err and refused[#refused] ~= call[1] then
    refused[#refused + 1] = call[1]
    if why == '' then
      why = answer.err
    end
  end
end
return { refused, why }

-- Identifies the server's memory: a server that was restarted, emptied or replaced by its standby
-- may lack counted requests, and gets a new name.
-- KEYS: the identity. ARGV: a new name.
-- Returns the name, and its age in microseconds.

-- A read-only server, such as a primary that became a standby, cannot count: it refuses this.
redis.call('HSET', KEYS[1], 'looked', text(now))
local run = run_id()
local known = redis.call('HMGET', KEYS[1], 'name', 'run', 'since')
if not known[1] or known[2] ~= run then
  redis.call('HSET', KEYS[1], 'name', ARGV[1], 'run', run, 'since', text(now))
  return { ARGV[1], 0 }
end
return { known[1], math.max(0, now - known[3]) }

-- Tells which memory this is: a server that was started again, emptied or replaced by its standby may lack
-- what was counted, and gets a new name.
-- KEYS: the identity. ARGV: a new name.
-- Returns the name, and for how many microseconds it has been in force.

-- One that can only be read, as a primary that has become a standby, cannot count: it refuses this.
redis.call('HSET', KEYS[1], 'looked', text(now))
local run = run_id()
local known = redis.call('HMGET', KEYS[1], 'name', 'run', 'since')
if not known[1] or known[2] ~= run then
  redis.call('HSET', KEYS[1], 'name', ARGV[1], 'run', run, 'since', text(now))
  return { ARGV[1], 0 }
end
return { known[1], math.max(0, now - known[3]) }

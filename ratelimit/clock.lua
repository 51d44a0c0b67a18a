-- All scripts begin with this file. now is the time on the server's clock, in microseconds.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- text writes a number in full: a time has 16 digits.
local function text(n) return string.format('%.0f', n) end

-- run_id is the name of the server's process.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or 'unknown'
end

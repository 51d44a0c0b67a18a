-- now is the time on the server's clock, in microseconds. All scripts begin with this.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- text writes a number whole: a time has 16 digits.
local function text(n) return string.format('%.0f', n) end

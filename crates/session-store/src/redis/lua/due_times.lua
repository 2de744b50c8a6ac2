-- When the sessions that are due in this partition were due, the longest due
-- first. KEYS 1 due; ARGV 1 limit
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local moments = {}
for i = 2, #entries, 2 do
  moments[#moments + 1] = entries[i]
end
return moments

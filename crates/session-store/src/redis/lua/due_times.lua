-- Due times of the due sessions of this partition, the longest due first.
-- KEYS 1 due; ARGV 1 limit
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local times = {}
for i = 2, #entries, 2 do
  times[#times + 1] = entries[i]
end
return times

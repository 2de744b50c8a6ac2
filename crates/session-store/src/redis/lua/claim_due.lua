-- Takes sessions that are due, the longest due first, and makes them due again
-- when the lease ends. KEYS 1 due; ARGV 1 limit, 2 lease in ms
local now = now_ms()
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(members) do
  redis.call('ZADD', KEYS[1], now + ARGV[2], member)
end
return members

-- Claims due sessions, the longest due first, and makes them due again at the end of
-- the lease. Returns members, each followed by its due time.
-- KEYS 1 due; ARGV 1 limit, 2 lease in ms
local now = now_ms()
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #entries, 2 do
  redis.call('ZADD', KEYS[1], now + ARGV[2], entries[i])
end
return entries

-- Registers a proxy; returns the time and whether the sequence number is new.
-- KEYS 1 proxies by their last report, 2 their sequence numbers
-- ARGV 1 proxy, 2 sequence number or 0, 3 retention of proxies in ms
local now = now_ms()
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3], 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
local last = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0)
local fresh = ARGV[2] == '0' or tonumber(ARGV[2]) > last
if tonumber(ARGV[2]) > last then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
end
return { string.format('%d', now), fresh and '1' or '0' }

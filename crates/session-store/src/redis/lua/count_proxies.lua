-- Forgets proxies that are gone; counts those that are left, and those of them
-- that are silent.
-- KEYS 1 proxies by their last report, 2 their sequence numbers
-- ARGV 1 silent after ms, 2 gone after ms, or '' to forget none
local now = now_ms()
if ARGV[2] ~= '' then
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])) do
    redis.call('ZREM', KEYS[1], gone)
    redis.call('HDEL', KEYS[2], gone)
  end
end
return { redis.call('ZCARD', KEYS[1]), redis.call('ZCOUNT', KEYS[1], '-inf', now - ARGV[1]) }

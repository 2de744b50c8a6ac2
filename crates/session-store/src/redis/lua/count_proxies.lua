-- Deletes proxies that are gone; returns the number of the others and of the silent
-- ones.
-- KEYS 1 proxies by their last report, 2 their sequence numbers
-- ARGV 1 silent after ms, 2 gone after ms, or '' to delete none
local now = now_ms()
if ARGV[2] ~= '' then
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])) do
    redis.call('ZREM', KEYS[1], gone)
    redis.call('HDEL', KEYS[2], gone)
  end
end
return { redis.call('ZCARD', KEYS[1]), redis.call('ZCOUNT', KEYS[1], '-inf', now - ARGV[1]) }

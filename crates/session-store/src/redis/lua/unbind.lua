-- Gives a binding back if it is still this one.
-- KEYS 1 whose the id is, 2 order of the holder's bindings, 3 their details
-- ARGV 1 name of the binding, 2 serial, 3 ms to keep the id from everybody
local stored = redis.call('HGET', KEYS[3], ARGV[1])
if not stored or cjson.decode(stored).serial ~= ARGV[2] then
  return { 'ok' }
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], '', 'PX', ARGV[3])
end
return { 'ok' }

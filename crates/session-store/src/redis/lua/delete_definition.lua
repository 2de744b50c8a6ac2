-- Removes a definition if its version is the expected one.
-- KEYS 1 definitions; ARGV 1 name, 2 expected
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored then
  return { 'not-found' }
end
if string.match(stored, '^%d+') ~= ARGV[2] then
  return { 'conflict' }
end
redis.call('HDEL', KEYS[1], ARGV[1])
return { 'ok' }

-- Releases a lease if this owner holds it.
-- KEYS 1 lease; ARGV 1 owner
local text = redis.call('GET', KEYS[1])
if text and (string.match(text, '^(.*)\n%d+$') or text) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return { 'ok' }

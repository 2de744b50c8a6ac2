-- Takes or keeps a lease unless somebody else has it.
-- KEYS 1 lease; ARGV 1 owner, 2 milliseconds, 0 to give it back
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
  return { 'held' }
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return { 'ok' }

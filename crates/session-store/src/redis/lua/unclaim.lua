-- Gives a name back if this holder has it.
-- KEYS 1 claim, 2 names of the holder; ARGV 1 holder, 2 name
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
redis.call('SREM', KEYS[2], ARGV[2])
return { 'ok' }

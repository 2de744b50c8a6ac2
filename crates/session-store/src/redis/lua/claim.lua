-- Takes a name unless somebody has it; answers who has it now.
-- KEYS 1 claim, 2 names of the holder; ARGV 1 holder, 2 name
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return { holder }
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[2])
return { ARGV[1] }

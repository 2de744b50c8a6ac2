-- Takes a name unless somebody has it; answers who has it now.
-- KEYS 1 claim; ARGV 1 holder
local holder = redis.call('GET', KEYS[1])
if holder then
  return { holder }
end
redis.call('SET', KEYS[1], ARGV[1])
return { ARGV[1] }

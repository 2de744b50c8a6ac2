-- Reads the newest members of indexes that are older than a cursor, newest first.
-- KEYS the indexes; ARGV 1 start of the range, 2 limit for each index
local found = {}
for i, index in ipairs(KEYS) do
  found[i] = redis.call('ZREVRANGEBYLEX', index, ARGV[1], '-', 'LIMIT', 0, ARGV[2])
end
return found

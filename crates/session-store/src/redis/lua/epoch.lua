-- The store epoch. It rises when the servers are not those it was made for,
-- when a reader saw a higher one, and when a reader saw the store go back. A
-- new epoch is the present, so that it is new also when an older one was
-- forgotten.
-- KEYS 1 epoch; ARGV 1 lineage of the servers or '' if nobody knows now,
--      2 the highest that was seen, 3 whether the store went back (1 or 0)
local stored = redis.call('HMGET', KEYS[1], 'value', 'lineage')
local value, seen = tonumber(stored[1] or 0), tonumber(ARGV[2])
local other = ARGV[1] ~= '' and stored[2] ~= ARGV[1]
if other or value < seen or ARGV[3] == '1' then
  value = math.max(value + 1, seen + 1, now_ms())
  redis.call('HSET', KEYS[1], 'value', string.format('%d', value))
  if ARGV[1] ~= '' then
    redis.call('HSET', KEYS[1], 'lineage', ARGV[1])
  end
end
return string.format('%d', value)

-- The store epoch. It increases when the lineage of the servers is another one, when a
-- reader saw a higher epoch, and when a reader saw the store go back in time. A new
-- epoch is at least the time in ms, so that it is higher than all earlier ones after a
-- loss.
-- KEYS 1 epoch
-- ARGV 1 lineage of the servers or '' if unknown, 2 highest epoch seen, 3 whether the
--      store went back (1 or 0)
local stored = redis.call('HMGET', KEYS[1], 'value', 'lineage')
local value, seen = tonumber(stored[1] or 0), tonumber(ARGV[2])
local replaced = ARGV[1] ~= '' and stored[2] ~= ARGV[1]
if replaced or value < seen or ARGV[3] == '1' then
  value = math.max(value + 1, seen + 1, now_ms())
  redis.call('HSET', KEYS[1], 'value', string.format('%d', value))
  if ARGV[1] ~= '' then
    redis.call('HSET', KEYS[1], 'lineage', ARGV[1])
  end
end
return string.format('%d', value)

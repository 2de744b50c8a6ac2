-- Counts the ended sessions of an organization, for retention. Counts are the sizes of
-- the indexes, so they cannot drift. `first` is the number of the first of five keys:
-- ended sessions of the organization, of the owner, organizations by their first end,
-- organizations by their number, owners by their number.
local function count_ended(first, org, owner)
  local function count(index, name, size)
    if size > 0 then
      redis.call('ZADD', index, size, name)
    else
      redis.call('ZREM', index, name)
    end
  end
  local oldest = redis.call('ZRANGE', KEYS[first], 0, 0, 'WITHSCORES')[2]
  if oldest then
    redis.call('ZADD', KEYS[first + 2], oldest, org)
  else
    redis.call('ZREM', KEYS[first + 2], org)
  end
  count(KEYS[first + 3], org, redis.call('ZCARD', KEYS[first]))
  count(KEYS[first + 4], owner, redis.call('ZCARD', KEYS[first + 1]))
end

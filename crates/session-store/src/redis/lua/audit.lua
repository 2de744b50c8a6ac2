-- Adds a record to the audit trail and keeps the trail within its length. The
-- places of an organization's records are in a list beside the trail, the oldest
-- first. In a full trail, a writer whose organization has more than a quarter of
-- it replaces the oldest record of that organization; every other writer
-- replaces the oldest of all.
local MOST_EVICTIONS = 16 -- by one writer, after the length was made smaller

local function audit(trail, record, length)
  local function places_of(json)
    return trail .. ':' .. (cjson.decode(json).org or '')
  end
  local own = places_of(record)
  redis.call('RPUSH', own, redis.call('XADD', trail, '*', 'audit', record))
  local surplus = redis.call('XLEN', trail) - length
  for _ = 1, math.min(surplus, MOST_EVICTIONS) do
    if redis.call('LLEN', own) > length / 4 then
      redis.call('XDEL', trail, redis.call('LPOP', own))
    else
      local oldest = redis.call('XRANGE', trail, '-', '+', 'COUNT', 1)[1]
      local places = places_of(oldest[2][2])
      redis.call('XDEL', trail, oldest[1])
      -- A trail of an older version of Berth has records that no list has.
      if redis.call('LINDEX', places, 0) == oldest[1] then
        redis.call('LPOP', places)
      end
    end
  end
end

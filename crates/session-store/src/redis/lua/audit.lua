-- Appends a record to the audit trail and limits its length. A list beside the trail
-- contains the positions of each organization's records, oldest first. In a full trail,
-- a writer whose organization has more than a quarter of it replaces the oldest record
-- of that organization; every other writer replaces the oldest record of all.
local MAX_EVICTIONS = 16 -- per write, after the length was reduced

local function audit(trail, record, length)
  local function positions_key(json)
    return trail .. ':' .. (cjson.decode(json).org or '')
  end
  local own = positions_key(record)
  redis.call('RPUSH', own, redis.call('XADD', trail, '*', 'audit', record))
  local surplus = redis.call('XLEN', trail) - length
  for _ = 1, math.min(surplus, MAX_EVICTIONS) do
    if redis.call('LLEN', own) > length / 4 then
      redis.call('XDEL', trail, redis.call('LPOP', own))
    else
      local oldest = redis.call('XRANGE', trail, '-', '+', 'COUNT', 1)[1]
      local positions = positions_key(oldest[2][2])
      redis.call('XDEL', trail, oldest[1])
      -- A trail of an older version of Berth contains records without a list.
      if redis.call('LINDEX', positions, 0) == oldest[1] then
        redis.call('LPOP', positions)
      end
    end
  end
end

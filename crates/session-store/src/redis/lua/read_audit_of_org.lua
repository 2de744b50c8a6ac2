-- Reads the newest records of an organization, newest first.
-- KEYS 1 audit trail, 2 positions of the organization's records, oldest first
-- ARGV 1 maximum number; only of records before a place: 2 its time, 3 its number, 4 whether
-- the record with exactly these is before it (1) or not (0)
local CHUNK = 256
local limit, time, number = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function is_before(position)
  if not time then
    return true
  end
  local own_time, own_number = string.match(position, '(%d+)-(%d+)')
  own_time, own_number = tonumber(own_time), tonumber(own_number)
  if own_time ~= time then
    return own_time < time
  end
  return own_number < number or (own_number == number and ARGV[4] == '1')
end

local found = {}
local last = redis.call('LLEN', KEYS[2]) - 1
while last >= 0 and #found < limit do
  local first = math.max(last - CHUNK + 1, 0)
  -- Newer chunks are passed over by their oldest position.
  if is_before(redis.call('LINDEX', KEYS[2], first)) then
    local positions = redis.call('LRANGE', KEYS[2], first, last)
    for i = #positions, 1, -1 do
      if #found < limit and is_before(positions[i]) then
        local entry = redis.call('XRANGE', KEYS[1], positions[i], positions[i])[1]
        if entry then
          found[#found + 1] = entry
        end
      end
    end
  end
  last = first - 1
end
return found

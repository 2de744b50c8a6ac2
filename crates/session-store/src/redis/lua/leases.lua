-- Busy leases of a session: a hash of "<until> <generation> <calls> <operations>" by
-- proxy. `live_leases` returns the unexpired ones of the generation `least` and later.
local function parts_of(lease)
  local until_ms, generation, calls, operations = string.match(lease, '^(%d+) (%d+) (%d+) (.*)$')
  return tonumber(until_ms), tonumber(generation), tonumber(calls), operations
end
local function live_leases(key, least, now)
  local live = {}
  for _, lease in ipairs(redis.call('HVALS', key)) do
    local until_ms, generation, calls, operations = parts_of(lease)
    if until_ms > now and generation >= least then
      live[#live + 1] = { calls = calls, operations = operations }
    end
  end
  return live
end
local function calls_in_flight(key, least, now)
  local calls = 0
  for _, lease in ipairs(live_leases(key, least, now)) do
    calls = calls + lease.calls
  end
  return calls
end

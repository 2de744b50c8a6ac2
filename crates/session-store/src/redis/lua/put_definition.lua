-- Writes a definition, stored as "<version> <json>", if its version is the expected one
-- and the organization's quota has room.
-- KEYS 1 definitions, 2 bytes by organization
-- ARGV 1 name, 2 expected version (0: none), 3 json, 4 organization or '', and with a
--      quota 5 maximum entries, 6 maximum bytes, 7 whether memory is short (1 or 0)
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local version = stored and tonumber(string.match(stored, '^%d+')) or 0
local expected = tonumber(ARGV[2])
if version ~= expected then
  if not stored then
    return { 'not-found' }
  end
  return { expected == 0 and 'exists' or 'conflict' }
end
if ARGV[4] ~= '' then
  local growth = #ARGV[3]
  if stored then
    growth = growth - #stored + #string.match(stored, '^%d+ ')
  else
    growth = growth + #ARGV[1]
  end
  local bytes = tonumber(redis.call('HGET', KEYS[2], ARGV[4]) or 0) + growth
  if ARGV[5] and growth > 0 then
    if ARGV[7] == '1' then
      return { 'over', 'memory' }
    end
    if not stored and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
      return { 'over', 'entries' }
    end
    if bytes > tonumber(ARGV[6]) then
      return { 'over', 'bytes' }
    end
  end
  redis.call('HSET', KEYS[2], ARGV[4], string.format('%d', bytes))
end
local next_version = string.format('%d', version + 1)
redis.call('HSET', KEYS[1], ARGV[1], next_version .. ' ' .. ARGV[3])
return { 'ok', next_version }

-- Writes a definition, kept as "<version> <json>", if its version is the
-- expected one. KEYS 1 definitions; ARGV 1 name, 2 expected (0: none), 3 json
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local version = stored and tonumber(string.match(stored, '^%d+')) or 0
local expected = tonumber(ARGV[2])
if version ~= expected then
  if not stored then
    return { 'not-found' }
  end
  return { expected == 0 and 'exists' or 'conflict' }
end
local next_version = string.format('%d', version + 1)
redis.call('HSET', KEYS[1], ARGV[1], next_version .. ' ' .. ARGV[3])
return { 'ok', next_version }

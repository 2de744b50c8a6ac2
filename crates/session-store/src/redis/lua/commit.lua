-- Writes a change if the stored version is the one before.
-- Keys and arguments are save.lua's; the indexes begin at 11.
local stored = redis.call('HGET', KEYS[1], 'version')
if not stored then
  return { 'not-found' }
end
if tonumber(stored) + 1 ~= tonumber(ARGV[3]) then
  return { 'conflict' }
end
save(11)
return { 'ok' }

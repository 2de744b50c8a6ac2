-- Writes a change if the stored version is the one before. Keys and arguments as in
-- save.lua; the indexes begin at 12.
local stored = read_session(KEYS[1])
if not stored then
  return { 'not-found' }
end
if tonumber(stored.version) + 1 ~= tonumber(ARGV[3]) then
  return { 'conflict' }
end
save(12, stored)
return { 'ok' }

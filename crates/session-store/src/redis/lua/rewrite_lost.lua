-- Writes a record that a fail-over lost, if the stored one is still the one
-- that was seen. Keys and arguments are save.lua's; then the version seen.
local stored = read_session(KEYS[1])
if not stored or stored.version ~= ARGV[19] then
  return { 'conflict' }
end
save(12, stored)
return { 'ok' }

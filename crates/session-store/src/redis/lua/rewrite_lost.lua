-- Writes a record that a fail-over lost, if the stored version is unchanged. Keys and
-- arguments as in save.lua; then the expected version.
local stored = read_session(KEYS[1])
if not stored or stored.version ~= ARGV[19] then
  return { 'conflict' }
end
save(12, stored)
return { 'ok' }

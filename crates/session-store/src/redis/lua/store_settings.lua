-- Stores a change of the settings of a Spark session.
-- KEYS 1 Spark sessions of the session
-- ARGV 1 Spark session, 2 generation, 3 maximum number of Spark sessions, 4 maximum
--      bytes, 5 retention in ms, 6 number of settings to set, then their names and
--      values, then the names to unset
local stored = read_spark_session(ARGV[1])
if tonumber(ARGV[2]) < stored.g then
  return { 'not-stored' }
end
local set = 6 + 2 * tonumber(ARGV[6])
for i = 7, set, 2 do
  stored.s[ARGV[i]] = ARGV[i + 1]
end
for i = set + 1, #ARGV do
  stored.s[ARGV[i]] = nil
end
local bytes = 0
for name, value in pairs(stored.s) do
  bytes = bytes + #name + #value
end
if bytes > tonumber(ARGV[4]) then
  return { 'not-stored' }
end
stored.g = tonumber(ARGV[2])
write_spark_session(ARGV[1], stored, tonumber(ARGV[3]), ARGV[5])
return { 'stored' }

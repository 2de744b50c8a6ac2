-- Keeps a change of a Spark session's settings.
-- KEYS 1 the session's Spark sessions
-- ARGV 1 Spark session, 2 generation, 3 most Spark sessions, 4 most bytes,
--      5 ms to keep them, 6 how many are set, then names and values, then names
--      that are unset
local kept = kept_spark_session(ARGV[1])
if tonumber(ARGV[2]) < kept.g then
  return { 'not-kept' }
end
local set = 6 + 2 * tonumber(ARGV[6])
for i = 7, set, 2 do
  kept.s[ARGV[i]] = ARGV[i + 1]
end
for i = set + 1, #ARGV do
  kept.s[ARGV[i]] = nil
end
local bytes = 0
for name, value in pairs(kept.s) do
  bytes = bytes + #name + #value
end
if bytes > tonumber(ARGV[4]) then
  return { 'not-kept' }
end
kept.g = tonumber(ARGV[2])
keep_spark_session(ARGV[1], kept, tonumber(ARGV[3]), ARGV[5])
return { 'kept' }

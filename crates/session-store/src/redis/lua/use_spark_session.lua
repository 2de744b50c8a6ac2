-- Records the use of a Spark session on a generation.
-- KEYS 1 Spark sessions of the session
-- ARGV 1 Spark session, 2 generation, 3 maximum number of Spark sessions, 4 retention
--      in ms
local stored, generation = read_spark_session(ARGV[1]), tonumber(ARGV[2])
if stored.g >= generation then
  return { 'again' }
end
local outcome = stored.g == 0 and 'new' or 'moved'
stored.g = generation
write_spark_session(ARGV[1], stored, tonumber(ARGV[3]), ARGV[4])
return { outcome }

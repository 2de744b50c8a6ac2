-- Moves a Spark session to a generation.
-- KEYS 1 the session's Spark sessions
-- ARGV 1 Spark session, 2 generation, 3 most Spark sessions, 4 ms to keep them
local kept, generation = kept_spark_session(ARGV[1]), tonumber(ARGV[2])
if kept.g >= generation then
  return { 'again' }
end
local answer = kept.g == 0 and 'new' or 'moved'
kept.g = generation
keep_spark_session(ARGV[1], kept, tonumber(ARGV[3]), ARGV[4])
return { answer }

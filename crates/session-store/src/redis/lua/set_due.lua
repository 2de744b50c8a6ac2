-- Sets the due entry of a session if its version is the expected one. An entry without
-- a record is deleted, because nothing else would remove it.
-- KEYS 1 record, 2 due; ARGV 1 member, 2 version, 3 due or ''
local stored = read_session(KEYS[1])
if not stored then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return { 'not-found' }
end
if stored.version ~= ARGV[2] then
  return { 'conflict' }
end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
end
return { 'ok' }

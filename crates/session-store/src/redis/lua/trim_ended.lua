-- Deletes an ended session, unless it is live, still due, or deleted already.
-- KEYS 1 record, 2 due, 3 to 7 as in ended.lua, 8 and 9 its other keys, then the
--      indexes that contain it
-- ARGV 1 id, 2 member, 3 organization, 4 owner
local stored = read_session(KEYS[1])
if not stored or stored.live or redis.call('ZSCORE', KEYS[2], ARGV[2]) then
  return { 'kept' }
end
redis.call('UNLINK', KEYS[1], KEYS[8], KEYS[9])
for i = 10, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[1])
end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
count_ended(3, ARGV[3], ARGV[4])
return { 'ok' }

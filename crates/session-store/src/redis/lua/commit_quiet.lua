-- Writes what an idle clock decided, if the stored version is the one before,
-- no call is in flight and the last activity is still the one that was seen.
-- After save.lua's keys: 11 use, 12 leases, then the indexes.
-- After save.lua's arguments: 18 last_activity_at, 0 before the first
local stored = redis.call('HGET', KEYS[1], 'version')
if not stored then
  return { 'not-found' }
end
if tonumber(stored) + 1 ~= tonumber(ARGV[3]) then
  return { 'conflict' }
end
local last = tonumber(redis.call('HGET', KEYS[11], 'last_activity_at') or 0)
if last ~= tonumber(ARGV[18]) or #live_leases(KEYS[12], tonumber(ARGV[17]), now_ms()) > 0 then
  return { 'conflict' }
end
save(13)
return { 'ok' }

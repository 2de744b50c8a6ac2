-- Writes the decision of an idle timeout, if the stored version is the one before, no
-- call is in flight and the last activity is unchanged.
-- After the keys of save.lua: 12 leases, then the indexes.
-- After the arguments of save.lua: 19 last_activity_at, 0 without activity
local stored = read_session(KEYS[1])
if not stored then
  return { 'not-found' }
end
if tonumber(stored.version) + 1 ~= tonumber(ARGV[3]) then
  return { 'conflict' }
end
local last = tonumber(use_of(stored).last) or 0
if last ~= tonumber(ARGV[19]) or calls_in_flight(KEYS[12], tonumber(ARGV[17]), now_ms()) > 0 then
  return { 'conflict' }
end
save(13, stored)
return { 'ok' }

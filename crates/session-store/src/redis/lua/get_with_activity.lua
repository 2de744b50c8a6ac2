-- A session with its activity: the stored string, last_activity_at or '', calls in
-- flight, the time. Empty if no session exists.
-- KEYS 1 record, 2 leases
local session = read_session(KEYS[1])
if not session then
  return {}
end
local now = now_ms()
local calls = calls_in_flight(KEYS[2], tonumber(session.generation), now)
return { session.text, use_of(session).last, string.format('%d', calls), string.format('%d', now) }

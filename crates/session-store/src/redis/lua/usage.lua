-- The usage of sessions, seven texts each: last_activity_at or '', calls in flight,
-- rpcs, bytes_in, bytes_out, open_stream_millis, the time.
-- KEYS record and leases of each session; ARGV generation of each
local now = now_ms()
local reply = {}
for i = 1, #KEYS, 2 do
  local calls = calls_in_flight(KEYS[i + 1], tonumber(ARGV[(i + 1) / 2]), now)
  local session = read_session(KEYS[i])
  local use = use_of(session or { use = '' })
  reply[#reply + 1] = use.last
  reply[#reply + 1] = string.format('%d', calls)
  for _, total in ipairs(use.totals) do
    reply[#reply + 1] = total
  end
  reply[#reply + 1] = string.format('%d', now)
end
return reply

-- The use of sessions, seven texts each: last_activity_at or '', calls in
-- flight, rpcs, bytes_in, bytes_out, open_stream_millis, the present.
-- KEYS of each session its record and its leases; ARGV of each its generation
local now = now_ms()
local answer = {}
for i = 1, #KEYS, 2 do
  local calls = calls_in_flight(KEYS[i + 1], tonumber(ARGV[(i + 1) / 2]), now)
  local session = read_session(KEYS[i])
  local use = use_of(session or { use = '' })
  answer[#answer + 1] = use.last
  answer[#answer + 1] = string.format('%d', calls)
  for _, total in ipairs(use.totals) do
    answer[#answer + 1] = total
  end
  answer[#answer + 1] = string.format('%d', now)
end
return answer

-- The use of sessions, seven texts each: last_activity_at or '', calls in
-- flight, rpcs, bytes_in, bytes_out, open_stream_millis, the present.
-- KEYS of each session its use and its leases; ARGV of each its generation
local now = now_ms()
local answer = {}
for i = 1, #KEYS, 2 do
  local calls = 0
  for _, lease in ipairs(live_leases(KEYS[i + 1], tonumber(ARGV[(i + 1) / 2]), now)) do
    calls = calls + lease.calls
  end
  local use = redis.call('HMGET', KEYS[i], 'last_activity_at', 'rpcs', 'bytes_in', 'bytes_out', 'open_stream_millis')
  answer[#answer + 1] = use[1] or ''
  answer[#answer + 1] = string.format('%d', calls)
  for total = 2, 5 do
    answer[#answer + 1] = use[total] or '0'
  end
  answer[#answer + 1] = string.format('%d', now)
end
return answer

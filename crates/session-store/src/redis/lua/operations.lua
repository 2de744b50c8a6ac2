-- What the calls in flight on a session's generation execute, by proxy.
-- KEYS 1 record, 2 leases
local head = head_of(KEYS[1])
local generation = head and tonumber(head.generation) or 0
local answer = {}
for _, lease in ipairs(live_leases(KEYS[2], generation, now_ms())) do
  answer[#answer + 1] = lease.operations
end
return answer

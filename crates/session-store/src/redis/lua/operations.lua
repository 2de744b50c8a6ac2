-- Operations of the calls in flight on the session's generation, by proxy.
-- KEYS 1 record, 2 leases
local session = read_session(KEYS[1])
local generation = session and tonumber(session.generation) or 0
local operations = {}
for _, lease in ipairs(live_leases(KEYS[2], generation, now_ms())) do
  operations[#operations + 1] = lease.operations
end
return operations

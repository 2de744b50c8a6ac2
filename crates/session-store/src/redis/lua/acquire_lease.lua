-- Acquires or renews a lease unless another owner holds it. Its text is the owner and
-- the fencing number, in two lines.
-- KEYS 1 lease, 2 last fencing number of all leases
-- ARGV 1 owner, 2 milliseconds
local text = redis.call('GET', KEYS[1])
local owner, fence
if text then
  owner, fence = string.match(text, '^(.*)\n(%d+)$')
  owner = owner or text
end
if owner and owner ~= ARGV[1] then
  return { 'held' }
end
if not fence then
  -- The clock keeps the numbers increasing if the last one was lost.
  local last = tonumber(redis.call('GET', KEYS[2]) or 0)
  fence = string.format('%d', math.max(last + 1, now_ms()))
  redis.call('SET', KEYS[2], fence)
end
redis.call('SET', KEYS[1], ARGV[1] .. '\n' .. fence, 'PX', ARGV[2])
return { 'ok', fence }

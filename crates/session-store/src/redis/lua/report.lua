-- Takes what a proxy says of a session.
-- KEYS 1 record, 2 use, 3 leases, 4 tokens, 5 uses of tokens, 6 audit trail
-- ARGV 1 proxy, 2 generation, 3 calls in flight or '', 4 last_activity_at or '',
--      5 operations, 6 length of a lease in ms, 7 the name of the amount or '',
--      8 length of all names that are remembered, 9 rpcs, 10 bytes_in,
--      11 bytes_out, 12 open_stream_millis, 13 length of the audit trail, then
--      of each token its id, first and last use, and the audit record of its
--      first use
local record = redis.call('HMGET', KEYS[1], 'live', 'status', 'generation')
if not record[1] then
  return { 'unknown' }
end
local now = now_ms()
local use = redis.call('HMGET', KEYS[2], 'last_activity_at', 'added')

local added = use[2] or ''
if ARGV[7] ~= '' and not string.find(added, ARGV[7], 1, true) then
  for i, total in ipairs({ 'rpcs', 'bytes_in', 'bytes_out', 'open_stream_millis' }) do
    redis.call('HINCRBY', KEYS[2], total, ARGV[8 + i])
  end
  redis.call('HSET', KEYS[2], 'added', string.sub(ARGV[7] .. ' ' .. added, 1, tonumber(ARGV[8])))
end

local function moment(text)
  return string.format('%d', math.min(tonumber(text), now))
end
for i = 14, #ARGV, 4 do
  local id = ARGV[i]
  if redis.call('HEXISTS', KEYS[4], id) == 1 then
    if redis.call('HSETNX', KEYS[5], 'first:' .. id, moment(ARGV[i + 1])) == 1 then
      redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[13], '*', 'audit', ARGV[i + 3])
    end
    local last = redis.call('HGET', KEYS[5], 'last:' .. id)
    if not last or tonumber(last) < tonumber(moment(ARGV[i + 2])) then
      redis.call('HSET', KEYS[5], 'last:' .. id, moment(ARGV[i + 2]))
    end
  end
end
if #ARGV > 13 then
  -- Uses are kept as long as their tokens are.
  local left = redis.call('PTTL', KEYS[4])
  if left > 0 then
    redis.call('PEXPIRE', KEYS[5], left)
  end
end
if record[1] ~= '1' then
  return { 'ended' }
end

-- What runs on an earlier generation is lost: it keeps nothing alive.
local of_now = tonumber(ARGV[2]) >= tonumber(record[3])
local at = of_now and math.min(tonumber(ARGV[4]) or 0, now) or 0
if of_now and (tonumber(ARGV[3]) or 0) > 0 then
  at = now
  if redis.call('HLEN', KEYS[3]) > 0 then
    local leases = redis.call('HGETALL', KEYS[3])
    for i = 1, #leases, 2 do
      if parts_of(leases[i + 1]) <= now then
        redis.call('HDEL', KEYS[3], leases[i])
      end
    end
  end
  local lease = string.format('%d %s %s ', now + ARGV[6], ARGV[2], ARGV[3])
  redis.call('HSET', KEYS[3], ARGV[1], lease .. ARGV[5])
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
elseif ARGV[3] ~= '' then
  redis.call('HDEL', KEYS[3], ARGV[1])
end
if at > tonumber(use[1] or 0) then
  redis.call('HSET', KEYS[2], 'last_activity_at', string.format('%d', at))
end
return { 'live', record[2] }

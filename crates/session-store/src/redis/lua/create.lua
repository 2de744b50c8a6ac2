-- Writes a new session unless its request was used or a quota is exhausted.
-- After the keys of save.lua: 12 creates of the owner, 13 live sessions of the owner,
-- 14 the request (the creates key again without a request), 15 to 17 the live statuses
-- of the organization, then the indexes.
-- After the arguments of save.lua: 19 whether a request is given (1 or 0), 20
-- fingerprint, 21 retention of requests in ms, 22 live_sessions_per_owner, 23
-- live_sessions, 24 creates_per_minute
if ARGV[19] == '1' then
  local first = redis.call('HMGET', KEYS[14], 'fingerprint', 'record')
  if first[2] and redis.call('EXISTS', first[2]) == 1 then
    return { first[1] == ARGV[20] and 'repeated' or 'reused' }
  end
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 'exists' }
end

-- Counts are the sizes of the indexes, so they cannot drift.
if redis.call('ZCARD', KEYS[13]) >= tonumber(ARGV[22]) then
  return { 'quota', 'live_sessions_per_owner' }
end
local live = redis.call('ZCARD', KEYS[15]) + redis.call('ZCARD', KEYS[16]) + redis.call('ZCARD', KEYS[17])
if live >= tonumber(ARGV[23]) then
  return { 'quota', 'live_sessions' }
end
local now = now_ms()
local window = math.floor(now / 60000)
local window_end = (window + 1) * 60000
local of, count = string.match(redis.call('GET', KEYS[12]) or '', '^(%d+) (%d+)$')
count = tonumber(of) == window and tonumber(count) or 0
if count >= tonumber(ARGV[24]) then
  return { 'quota', 'creates_per_minute', string.format('%d', window_end - now) }
end

redis.call('SET', KEYS[12], string.format('%d %d', window, count + 1), 'PXAT', window_end)
if ARGV[19] == '1' then
  redis.call('HSET', KEYS[14], 'fingerprint', ARGV[20], 'record', KEYS[1])
  redis.call('PEXPIRE', KEYS[14], ARGV[21])
end
save(18, nil)
return { 'ok' }

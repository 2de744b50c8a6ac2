-- Writes a new session unless its request came before or a quota is used up.
-- After save.lua's keys: 11 creates of the owner, 12 live of the
-- organization, 13 live of the owner, 14 the request (the creates key again if there is none),
-- then the indexes.
-- After save.lua's arguments: 18 whether there is a request (1 or 0),
-- 19 fingerprint, 20 memory of requests in ms, 21 live_sessions_per_owner,
-- 22 live_sessions, 23 creates_per_minute
if ARGV[18] == '1' then
  local first = redis.call('HMGET', KEYS[14], 'fingerprint', 'record')
  local json = first[2] and redis.call('HGET', first[2], 'json')
  if json then
    if first[1] ~= ARGV[19] then
      return { 'reused' }
    end
    return { 'repeated', json }
  end
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 'exists' }
end

-- Counted from the indexes themselves, so that no counter can drift.
if redis.call('ZCARD', KEYS[13]) >= tonumber(ARGV[21]) then
  return { 'quota', 'live_sessions_per_owner' }
end
if redis.call('ZCARD', KEYS[12]) >= tonumber(ARGV[22]) then
  return { 'quota', 'live_sessions' }
end
local now = now_ms()
local window = math.floor(now / 60000)
local window_end = (window + 1) * 60000
local creates = redis.call('HMGET', KEYS[11], 'window', 'count')
local count = 0
if tonumber(creates[1] or -1) == window then
  count = tonumber(creates[2])
end
if count >= tonumber(ARGV[23]) then
  return { 'quota', 'creates_per_minute', string.format('%d', window_end - now) }
end

redis.call('HSET', KEYS[11], 'window', window, 'count', count + 1)
redis.call('PEXPIREAT', KEYS[11], window_end)
if ARGV[18] == '1' then
  redis.call('HSET', KEYS[14], 'fingerprint', ARGV[19], 'record', KEYS[1])
  redis.call('PEXPIRE', KEYS[14], ARGV[20])
end
save(15)
return { 'ok' }

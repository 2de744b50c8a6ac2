-- Records a token if its session is live and of the token's epoch, and has
-- fewer live tokens than the limit.
-- KEYS 1 record, 2 expiry times, 3 tokens
-- ARGV 1 id, 2 json, 3 epoch, 4 expires_at, 5 limit
local record = redis.call('HMGET', KEYS[1], 'live', 'token_epoch', 'json')
if not record[1] then
  return { 'not-found' }
end
if record[1] ~= '1' then
  return { 'refused', 'closed' }
end
if record[2] ~= ARGV[3] then
  return { 'refused', 'epoch' }
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms())) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then
  return { 'ok' }
end

-- Only at the limit is it worth telling revoked tokens from live ones.
local limit = tonumber(ARGV[5])
if redis.call('ZCARD', KEYS[2]) >= limit then
  local revoked = cjson.decode(record[3]).revoked_tokens or {}
  local live = 0
  for _, json in ipairs(redis.call('HVALS', KEYS[3])) do
    local token = cjson.decode(json)
    if token.epoch == tonumber(ARGV[3]) and not revoked[token.id] then
      live = live + 1
    end
  end
  if live >= limit then
    return { 'quota', 'tokens_per_session' }
  end
end
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[2], last)
redis.call('PEXPIREAT', KEYS[3], last)
return { 'ok' }

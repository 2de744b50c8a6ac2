-- Records a token if its session is live and of the token's epoch, and has
-- fewer live tokens than the limit. No token is read: those of an older epoch
-- go all at once when the first of a new one comes, so never more than the
-- limit are kept.
-- KEYS 1 record, 2 expiry times, 3 tokens, 4 their uses, 5 audit trail
-- ARGV 1 id, 2 json, 3 epoch, 4 expires_at, 5 limit, then ids that are revoked,
--      last an audit record and the trail's length
local record = redis.call('HMGET', KEYS[1], 'live', 'token_epoch', 'ledger_epoch')
if not record[1] then
  return { 'not-found' }
end
if record[1] ~= '1' then
  return { 'refused', 'closed' }
end
if record[2] ~= ARGV[3] then
  return { 'refused', 'epoch' }
end
if record[3] ~= ARGV[3] then
  redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4])
  redis.call('HSET', KEYS[1], 'ledger_epoch', ARGV[3])
end

local function forget(id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('HDEL', KEYS[4], 'first:' .. id, 'last:' .. id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms())) do
  forget(id)
end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then
  return { 'ok' }
end
for i = 6, #ARGV - 2 do
  forget(ARGV[i])
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then
  return { 'quota', 'tokens_per_session' }
end
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[2], last)
redis.call('PEXPIREAT', KEYS[3], last)
redis.call('PEXPIREAT', KEYS[4], last)
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[#ARGV], '*', 'audit', ARGV[#ARGV - 1])
return { 'ok' }

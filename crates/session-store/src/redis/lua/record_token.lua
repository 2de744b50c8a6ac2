-- Records a token if its session is live and of the token's epoch, and has
-- fewer live tokens than the limit. Those of an older epoch go all at once when
-- the first of a new one comes, so never more than the limit are kept.
-- KEYS 1 record, 2 audit trail
-- ARGV 1 id, 2 details, 3 epoch, 4 expires_at, 5 limit, then ids that are
--      revoked, last an audit record and the trail's length
local head = head_of(KEYS[1])
if not head then
  return { 'not-found' }
end
if not head.live then
  return { 'refused', 'closed' }
end
if head.token_epoch ~= ARGV[3] then
  return { 'refused', 'epoch' }
end
if head.ledger_epoch ~= ARGV[3] then
  redis.call('LTRIM', KEYS[1], 0, TOKENS - 1)
  head.ledger_epoch = ARGV[3]
  redis.call('LSET', KEYS[1], HEAD, head_text(head))
end

local revoked = {}
for i = 6, #ARGV - 2 do
  revoked[ARGV[i]] = true
end
local now, known, kept = now_ms(), false, {}
for _, text in ipairs(redis.call('LRANGE', KEYS[1], TOKENS, -1)) do
  local token = token_of(text)
  if token.expires_at <= now then
    redis.call('LREM', KEYS[1], 1, text)
  else
    known = known or token.id == ARGV[1]
    kept[#kept + 1] = { id = token.id, text = text }
  end
end
if known then
  return { 'ok' }
end
local number = #kept
for _, token in ipairs(kept) do
  if revoked[token.id] then
    redis.call('LREM', KEYS[1], 1, token.text)
    number = number - 1
  end
end
if number >= tonumber(ARGV[5]) then
  return { 'quota', 'tokens_per_session' }
end
redis.call('RPUSH', KEYS[1], token_text({ id = ARGV[1], expires_at = tonumber(ARGV[4]), first = '', last = '',
  details = ARGV[2] }))
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[#ARGV], '*', 'audit', ARGV[#ARGV - 1])
return { 'ok' }

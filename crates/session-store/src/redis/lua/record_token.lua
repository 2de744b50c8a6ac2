-- Records a token if its session is live and of the token's epoch, and has
-- fewer live tokens than the limit. Those of an older epoch go all at once when
-- the first of a new one comes, so never more than the limit are kept.
-- KEYS 1 record, 2 audit trail
-- ARGV 1 id, 2 details, 3 epoch, 4 expires_at, 5 limit, then ids that are
--      revoked, last an audit record and the trail's length
local session = read_session(KEYS[1])
if not session then
  return { 'not-found' }
end
if not session.live then
  return { 'refused', 'closed' }
end
if session.token_epoch ~= ARGV[3] then
  return { 'refused', 'epoch' }
end
if session.ledger_epoch ~= ARGV[3] then
  session.tokens, session.ledger_epoch = '', ARGV[3]
end

local revoked = {}
for i = 6, #ARGV - 2 do
  revoked[ARGV[i]] = true
end
local now, kept = now_ms(), {}
for _, token in ipairs(tokens_of(session.tokens)) do
  if token.expires_at > now then
    if token.id == ARGV[1] then
      return { 'ok' }
    end
    if not revoked[token.id] then
      kept[#kept + 1] = token
    end
  end
end
if #kept >= tonumber(ARGV[5]) then
  return { 'quota', 'tokens_per_session' }
end
kept[#kept + 1] = { id = ARGV[1], expires_at = tonumber(ARGV[4]), first = '', last = '', details = ARGV[2] }
session.tokens = tokens_text(kept)
write_session(KEYS[1], session)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[#ARGV], '*', 'audit', ARGV[#ARGV - 1])
return { 'ok' }

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

-- How many there are, and whether one that expired is known to be among them;
-- nothing if this one is there.
local function count(tokens, now)
  local function is_over(at)
    return tonumber(string.match(tokens, '^%S+ (%d+)', at + 2)) <= now
  end
  -- The oldest comes first: while it is good, most are, and need no look.
  local number, at, name, over = 0, 1, ARGV[1] .. ' ', tokens ~= '' and is_over(1)
  while at <= #tokens do
    if string.sub(tokens, at + 2, at + 1 + #name) == name then
      if not is_over(at) then
        return nil
      end
      over = true
    end
    number = number + 1
    at = at + 2 + struct.unpack('>I2', tokens, at)
  end
  return number, over
end
-- Those that still count.
local function live(tokens, now)
  local revoked, kept = {}, {}
  for i = 6, #ARGV - 2 do
    revoked[ARGV[i]] = true
  end
  for _, token in ipairs(tokens_of(tokens)) do
    if token.expires_at > now and not revoked[token.id] then
      kept[#kept + 1] = token
    end
  end
  return kept
end

local now = now_ms()
local number, over = count(session.tokens, now)
if not number then
  return { 'ok' }
end
if number >= tonumber(ARGV[5]) or over then
  local kept = live(session.tokens, now)
  if #kept >= tonumber(ARGV[5]) then
    return { 'quota', 'tokens_per_session' }
  end
  session.tokens = tokens_text(kept)
end
session.tokens = session.tokens
  .. token_text({ id = ARGV[1], expires_at = tonumber(ARGV[4]), first = '', last = '', details = ARGV[2] })
write_session(KEYS[1], session)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[#ARGV], '*', 'audit', ARGV[#ARGV - 1])
return { 'ok' }

-- Records a token if its session is live, has the token's epoch and has fewer live
-- tokens than the limit. All tokens of an older epoch are deleted with the first one of
-- a new epoch. Expired tokens stay for a time if there is room, so at most the limit
-- are stored.
-- KEYS 1 record, 2 audit trail
-- ARGV 1 id, 2 details, 3 epoch, 4 expires_at, 5 limit, 6 retention of expired tokens
--      in ms, then the revoked ids, then an audit record and the maximum length of the
--      trail
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

local now, limit, retention = now_ms(), tonumber(ARGV[5]), tonumber(ARGV[6])

-- Returns the number of tokens, and whether one of them must be deleted; nil if this
-- token is recorded already.
local function count(tokens)
  local function end_of(at)
    return tonumber(string.match(tokens, '^%S+ (%d+)', at + 2))
  end
  -- The oldest is first: while it stays, no expiry of the others is examined.
  local number, at, name, stale = 0, 1, ARGV[1] .. ' ', tokens ~= '' and end_of(1) + retention <= now
  while at <= #tokens do
    if string.sub(tokens, at + 2, at + 1 + #name) == name then
      if end_of(at) > now then
        return nil
      end
      stale = true
    end
    number = number + 1
    at = at + 2 + struct.unpack('>I2', tokens, at)
  end
  return number, stale
end
-- Returns the tokens that stay beside a new one, and the number of live ones.
local function retained(tokens)
  local revoked, candidates, live = {}, {}, 0
  for i = 7, #ARGV - 2 do
    revoked[ARGV[i]] = true
  end
  for _, token in ipairs(tokens_of(tokens)) do
    if token.id ~= ARGV[1] and token.expires_at + retention > now and not revoked[token.id] then
      candidates[#candidates + 1] = token
      live = live + (token.expires_at > now and 1 or 0)
    end
  end
  local surplus, kept = #candidates + 1 - limit, {}
  for _, token in ipairs(candidates) do
    if surplus > 0 and token.expires_at <= now then
      surplus = surplus - 1
    else
      kept[#kept + 1] = token
    end
  end
  return kept, live
end

local number, stale = count(session.tokens)
if not number then
  return { 'ok' }
end
if number >= limit or stale then
  local kept, live = retained(session.tokens)
  if live >= limit then
    return { 'quota', 'tokens_per_session' }
  end
  session.tokens = tokens_text(kept)
end
session.tokens = session.tokens
  .. token_text({ id = ARGV[1], expires_at = tonumber(ARGV[4]), first = '', last = '', details = ARGV[2] })
write_session(KEYS[1], session)
audit(KEYS[2], ARGV[#ARGV - 1], ARGV[#ARGV])
return { 'ok' }

-- Records a token if its session is live and of the token's epoch, and has
-- fewer live tokens than the limit. Those of an older epoch go all at once when
-- the first of a new one comes. Those that expired stay for a while, as long as
-- there is room, so never more than the limit are kept.
-- KEYS 1 record, 2 audit trail
-- ARGV 1 id, 2 details, 3 epoch, 4 expires_at, 5 limit, 6 ms that expired ones
--      stay, then ids that are revoked, last an audit record and the trail's length
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

local now, limit, memory = now_ms(), tonumber(ARGV[5]), tonumber(ARGV[6])

-- How many there are, and whether one is known to be among them that must go;
-- nothing if this one is there.
local function count(tokens)
  local function end_of(at)
    return tonumber(string.match(tokens, '^%S+ (%d+)', at + 2))
  end
  -- The oldest comes first: while it stays, most do, and need no look.
  local number, at, name, stale = 0, 1, ARGV[1] .. ' ', tokens ~= '' and end_of(1) + memory <= now
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
-- Those that stay beside a new one, and how many of them count.
local function staying(tokens)
  local revoked, found, live = {}, {}, 0
  for i = 7, #ARGV - 2 do
    revoked[ARGV[i]] = true
  end
  for _, token in ipairs(tokens_of(tokens)) do
    if token.id ~= ARGV[1] and token.expires_at + memory > now and not revoked[token.id] then
      found[#found + 1] = token
      live = live + (token.expires_at > now and 1 or 0)
    end
  end
  local surplus, kept = #found + 1 - limit, {}
  for _, token in ipairs(found) do
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
  local kept, live = staying(session.tokens)
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

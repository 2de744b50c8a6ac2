-- Applies a report of a proxy about a session.
-- KEYS 1 record, 2 leases, 3 tokens of an ended session, 4 audit trail
-- ARGV 1 proxy, 2 generation, 3 calls in flight or '', 4 last_activity_at or '',
--      5 operations, 6 duration of a lease in ms, 7 name of the usage delta or '',
--      8 maximum length of the list of names, 9 rpcs, 10 bytes_in, 11 bytes_out,
--      12 open_stream_millis, 13 maximum length of the audit trail, then for each token
--      its id, first use, last use, and the audit record of its first use
local session = read_session(KEYS[1])
if not session then
  return { 'unknown' }
end
local now = now_ms()
local use = use_of(session)
local used, renewed = false, false

if ARGV[7] ~= '' and not string.find(use.added, ARGV[7], 1, true) then
  for i = 1, 4 do
    -- Lua numbers are exact up to 2^53.
    local total = math.min(tonumber(use.totals[i]) + tonumber(ARGV[8 + i]), 2 ^ 53)
    use.totals[i] = string.format('%d', total)
  end
  use.added = string.sub(ARGV[7] .. ' ' .. use.added, 1, tonumber(ARGV[8]))
  used = true
end

local function until_now(text)
  return math.min(tonumber(text), now)
end
-- Records uses in a text of tokens; returns the new text.
local function record_uses(text)
  local tokens, by_id = tokens_of(text), {}
  for _, token in ipairs(tokens) do
    by_id[token.id] = token
  end
  for i = 14, #ARGV, 4 do
    local token = by_id[ARGV[i]]
    if token then
      if token.first == '' then
        token.first = string.format('%d', until_now(ARGV[i + 1]))
        audit(KEYS[4], ARGV[i + 3], ARGV[13])
      end
      if (tonumber(token.last) or -1) < until_now(ARGV[i + 2]) then
        token.last = string.format('%d', until_now(ARGV[i + 2]))
      end
    end
  end
  return tokens_text(tokens)
end
local function write()
  if used then
    session.use = use_text(use)
  end
  if used or renewed then
    write_session(KEYS[1], session)
  end
end
if #ARGV > 13 then
  local text = session.live and session.tokens or redis.call('GET', KEYS[3]) or ''
  local recorded = record_uses(text)
  if recorded ~= text and session.live then
    session.tokens, renewed = recorded, true
  elseif recorded ~= text then
    redis.call('SET', KEYS[3], recorded, 'KEEPTTL')
  end
end
if not session.live then
  write()
  return { 'ended' }
end

-- Calls on an earlier generation are lost and do not count as activity.
local is_current = tonumber(ARGV[2]) >= tonumber(session.generation)
local at = is_current and math.min(tonumber(ARGV[4]) or 0, now) or 0
if is_current and (tonumber(ARGV[3]) or 0) > 0 then
  at = now
  if redis.call('HLEN', KEYS[2]) > 0 then
    local leases = redis.call('HGETALL', KEYS[2])
    for i = 1, #leases, 2 do
      if parts_of(leases[i + 1]) <= now then
        redis.call('HDEL', KEYS[2], leases[i])
      end
    end
  end
  local lease = string.format('%d %s %s ', now + ARGV[6], ARGV[2], ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[1], lease .. ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
elseif ARGV[3] ~= '' then
  redis.call('HDEL', KEYS[2], ARGV[1])
end
if at > (tonumber(use.last) or 0) then
  use.last = string.format('%d', at)
  used = true
end
write()
return { 'live', session.status }

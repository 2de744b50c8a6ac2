-- Writes a record and all data derived from it; shared by create and commit. `stored`
-- is the previous session, if any. The indexes to add the session to and to remove it
-- from are keys from number `first` on, so this script builds no key.
-- KEYS 1 record, 2 tokens of an ended session, 3 due, 4 changes, 5 organizations with
--      live sessions on the cluster, 6 to 10 as in ended.lua, 11 live sessions of the
--      organization on the cluster
-- ARGV 1 id, 2 member, 3 version, 4 record, 5 status, 6 organization, 7 owner,
--      8 token_epoch, 9 closed_at or '', 10 live (1 or 0), 11 due or '', 12 event as
--      JSON, 13 maximum history, 14 maximum changes, 15 number of indexes to add to,
--      16 number of indexes to remove from, 17 generation, 18 event, compressed. Last:
--      the audit trail as key; an audit record and the maximum length of the trail as
--      arguments.

-- A history is a sequence of changes, each after its length in two bytes.
local function append_history(history, event, max)
  history = history .. struct.pack('>I2', #event) .. event
  local starts, at = {}, 1
  while at <= #history do
    starts[#starts + 1] = at
    at = at + 2 + struct.unpack('>I2', history, at)
  end
  if #starts > max then
    return string.sub(history, starts[#starts - max + 1])
  end
  return history
end

-- The tokens of an ended session stay until the last of them expires.
local function move_tokens(session)
  local last = 0
  for _, token in ipairs(tokens_of(session.tokens)) do
    last = math.max(last, token.expires_at)
  end
  if last > 0 then
    redis.call('SET', KEYS[2], session.tokens, 'PXAT', string.format('%d', last))
    session.tokens = ''
  end
end

local function save(first, stored)
  local id, member = ARGV[1], ARGV[2]
  local session = stored or { ledger_epoch = '0', use = '', history = '', tokens = '' }
  session.version, session.record, session.status, session.token_epoch = ARGV[3], ARGV[4], ARGV[5], ARGV[8]
  session.live, session.generation = ARGV[10] == '1', ARGV[17]
  session.history = append_history(session.history, ARGV[18], tonumber(ARGV[13]))
  if not session.live then
    move_tokens(session)
  end
  write_session(KEYS[1], session)
  local removed = first + tonumber(ARGV[15])
  for i = first, removed - 1 do
    redis.call('ZADD', KEYS[i], 0, id)
  end
  for i = removed, removed + tonumber(ARGV[16]) - 1 do
    redis.call('ZREM', KEYS[i], id)
  end
  if not stored then
    redis.call('ZADD', KEYS[5], 0, ARGV[6])
  elseif not session.live and redis.call('EXISTS', KEYS[11]) == 0 then
    redis.call('ZREM', KEYS[5], ARGV[6])
  end
  if ARGV[9] ~= '' then
    redis.call('ZADD', KEYS[6], ARGV[9], id)
    redis.call('ZADD', KEYS[7], ARGV[9], id)
    count_ended(6, ARGV[6], ARGV[7])
  end
  if ARGV[11] == '' then
    redis.call('ZREM', KEYS[3], member)
  else
    redis.call('ZADD', KEYS[3], ARGV[11], member)
  end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[14], '*',
    'session', member, 'event', ARGV[12], 'token_epoch', ARGV[8])
  audit(KEYS[#KEYS], ARGV[#ARGV - 1], ARGV[#ARGV])
end

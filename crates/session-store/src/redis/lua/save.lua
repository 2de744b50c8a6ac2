-- Writes a record and everything that follows from it; shared by create and
-- commit. `stored` is the one before, if there is one. The indexes that a session
-- comes into, and those that it leaves, come as keys after `first`, so this script
-- knows no key's form.
-- KEYS 1 record, 2 tokens that outlive the session, 3 due, 4 changes,
--      5 organizations with live sessions on the cluster, 6 to 10 as in
--      ended.lua, 11 live sessions of the organization on the cluster
-- ARGV 1 id, 2 member, 3 version, 4 record, 5 status, 6 organization, 7 owner,
--      8 token_epoch, 9 closed_at or '', 10 live (1 or 0), 11 due or '',
--      12 event json, 13 history length, 14 changes length, 15 number of
--      indexes to come into, 16 number of indexes to leave, 17 generation,
--      18 event packed
-- Last of all: the audit trail as key; a record and its length as arguments.

-- Changes follow each other, each after its length in two bytes.
local function remember(history, event, most)
  history = history .. struct.pack('>I2', #event) .. event
  local starts, at = {}, 1
  while at <= #history do
    starts[#starts + 1] = at
    at = at + 2 + struct.unpack('>I2', history, at)
  end
  if #starts > most then
    return string.sub(history, starts[#starts - most + 1])
  end
  return history
end

-- The tokens of a session that ended are kept as long as the last of them is good.
local function set_tokens_aside(session)
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
  session.history = remember(session.history, ARGV[18], tonumber(ARGV[13]))
  if not session.live then
    set_tokens_aside(session)
  end
  write_session(KEYS[1], session)
  local out = first + tonumber(ARGV[15])
  for i = first, out - 1 do
    redis.call('ZADD', KEYS[i], 0, id)
  end
  for i = out, out + tonumber(ARGV[16]) - 1 do
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

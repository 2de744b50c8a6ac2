-- Writes a record and everything that follows from it; shared by create and
-- commit. The indexes a session must be in, and those it must not be in, come
-- as keys after `first`, so this script knows no key's form.
-- KEYS 1 record, 2 history, 3 due, 4 changes, 5 live sessions of the cluster,
--      6 to 10 as in ended.lua
-- ARGV 1 id, 2 member, 3 version, 4 json, 5 status, 6 organization, 7 owner,
--      8 token_epoch, 9 closed_at or '', 10 live (1 or 0), 11 due or '',
--      12 event json, 13 history length, 14 changes length, 15 number of
--      indexes to be in, 16 number of indexes not to be in, 17 generation
-- Last of all: the audit trail as key; a record and its length as arguments.
local function save(first)
  local id, member = ARGV[1], ARGV[2]
  redis.call('HSET', KEYS[1], 'version', ARGV[3], 'json', ARGV[4], 'status', ARGV[5],
    'token_epoch', ARGV[8], 'live', ARGV[10], 'generation', ARGV[17])
  local out = first + tonumber(ARGV[15])
  for i = first, out - 1 do
    redis.call('ZADD', KEYS[i], 0, id)
  end
  for i = out, out + tonumber(ARGV[16]) - 1 do
    redis.call('ZREM', KEYS[i], id)
  end
  if ARGV[10] == '1' then
    redis.call('ZADD', KEYS[5], 0, member)
  else
    redis.call('ZREM', KEYS[5], member)
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
  redis.call('RPUSH', KEYS[2], ARGV[12])
  redis.call('LTRIM', KEYS[2], '-' .. ARGV[13], -1)
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[14], '*',
    'session', member, 'event', ARGV[12], 'token_epoch', ARGV[8])
  redis.call('XADD', KEYS[#KEYS], 'MAXLEN', '~', ARGV[#ARGV], '*', 'audit', ARGV[#ARGV - 1])
end

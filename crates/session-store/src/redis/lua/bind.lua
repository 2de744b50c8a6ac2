-- Makes a binding of a Spark session, or says why not. A binding's details are
-- {gen, is, serial, by, till}: generation, state, serial, preparer, and until
-- when the preparer has it.
-- KEYS 1 whose the id is, 2 order of the holder's bindings, 3 their details, 4 seal
-- ARGV 1 holder, 2 name of the binding, 3 generation, 4 ticket,
--      5 ms to prepare it or '', 6 limit
local generation, now = tonumber(ARGV[3]), now_ms()
if generation <= tonumber(redis.call('GET', KEYS[4]) or -1) then
  return { 'sealed' }
end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return { 'taken' }
end

local function write(name, details)
  redis.call('HSET', KEYS[3], name, cjson.encode(details))
end
local function release(name)
  local details = cjson.decode(redis.call('HGET', KEYS[3], name))
  details.is = 'releasing'
  write(name, details)
  return { 'release', name, cjson.encode(details) }
end
local function freshen()
  local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2] or 0
  redis.call('ZADD', KEYS[2], last + 1, ARGV[2])
end
local till = ARGV[5] ~= '' and now + ARGV[5] or 0

local stored = redis.call('HGET', KEYS[3], ARGV[2])
if stored then
  local details = cjson.decode(stored)
  if details.is == 'releasing' or details.gen ~= generation then
    return release(ARGV[2])
  end
  freshen()
  if details.is == 'ready' then
    return { 'ready' }
  end
  if details.till > now and details.by ~= ARGV[4] then
    return { 'wait' }
  end
  if ARGV[5] == '' then
    details.is = 'ready'
    write(ARGV[2], details)
    return { 'ready' }
  end
  details.by, details.till = ARGV[4], till
  write(ARGV[2], details)
  return { 'prepare' }
end

if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then
  return release(redis.call('ZRANGE', KEYS[2], 0, 0)[1])
end
redis.call('SET', KEYS[1], ARGV[1])
freshen()
local is = ARGV[5] == '' and 'ready' or 'unready'
write(ARGV[2], { gen = generation, is = is, serial = ARGV[4], by = ARGV[4], till = till })
return { ARGV[5] == '' and 'ready' or 'prepare' }

-- Records the keys that an issuer publishes and signs with; returns their common state.
-- KEYS 1 keys: "since signed seen" by id
-- ARGV 1 signing key or '', 2 gap in ms, 3 retention in ms, 4 maximum number of keys,
--      then the published ids
local now = now_ms()
local function read(id)
  local text = redis.call('HGET', KEYS[1], id)
  if not text then
    return nil
  end
  local since, signed, seen = string.match(text, '^(%d+) (%d+) (%d+)$')
  return tonumber(since), tonumber(signed), tonumber(seen)
end
-- Returns the key without a report for the longest time, if beyond the gap.
local function oldest_unreported()
  local found, least = nil, now - tonumber(ARGV[2])
  for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
    local _, _, seen = read(id)
    if not seen or seen < least then
      found, least = id, seen or 0
    end
  end
  return found, least
end
local function evict()
  local id = oldest_unreported()
  if id and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], id)
  end
end
while true do
  local id, seen = oldest_unreported()
  if not id or seen + tonumber(ARGV[3]) >= now then
    break
  end
  redis.call('HDEL', KEYS[1], id)
end
local reply = { string.format('%d', now) }
for i = 5, #ARGV do
  local id = ARGV[i]
  local since, signed, seen = read(id)
  if not since then
    evict()
  end
  if since or redis.call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then
    if not since or seen + tonumber(ARGV[2]) < now then
      since = now
    end
    signed = signed or 0
    if id == ARGV[1] then
      signed = now
    end
    redis.call('HSET', KEYS[1], id, string.format('%d %d %d', since, signed, now))
    reply[#reply + 1] = id
    reply[#reply + 1] = string.format('%d', since)
    reply[#reply + 1] = string.format('%d', signed)
  end
end
return reply

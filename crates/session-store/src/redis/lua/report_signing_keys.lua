-- Notes which keys an issuer publishes and signs with; answers what all know.
-- KEYS 1 keys: "since signed seen" by their ids
-- ARGV 1 the one that signs or '', 2 gap in ms, 3 memory in ms, 4 most keys,
--      then the ids that are published
local now = now_ms()
local function read(id)
  local text = redis.call('HGET', KEYS[1], id)
  if not text then
    return nil
  end
  local since, signed, seen = string.match(text, '^(%d+) (%d+) (%d+)$')
  return tonumber(since), tonumber(signed), tonumber(seen)
end
-- The one that nobody reported for the longest; those that are reported stay.
local function stalest()
  local found, least = nil, now - tonumber(ARGV[2])
  for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
    local _, _, seen = read(id)
    if not seen or seen < least then
      found, least = id, seen or 0
    end
  end
  return found, least
end
local function make_room()
  local id = stalest()
  if id and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], id)
  end
end
while true do
  local id, seen = stalest()
  if not id or seen + tonumber(ARGV[3]) >= now then
    break
  end
  redis.call('HDEL', KEYS[1], id)
end
local answer = { string.format('%d', now) }
for i = 5, #ARGV do
  local id = ARGV[i]
  local since, signed, seen = read(id)
  if not since then
    make_room()
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
    answer[#answer + 1] = id
    answer[#answer + 1] = string.format('%d', since)
    answer[#answer + 1] = string.format('%d', signed)
  end
end
return answer

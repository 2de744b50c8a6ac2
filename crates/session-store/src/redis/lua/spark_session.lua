-- A Spark session is stored as JSON: g generation of the last use, s settings, n number
-- of its last change among all changes of the hash. The field '#' is the highest
-- number.
local function read_spark_session(id)
  local text = redis.call('HGET', KEYS[1], id)
  if not text then
    return { g = 0, s = {} }
  end
  return cjson.decode(text)
end
-- Writes a Spark session; beyond `max`, the least recently changed one is deleted.
local function write_spark_session(id, stored, max, retention)
  stored.n = redis.call('HINCRBY', KEYS[1], '#', 1)
  redis.call('HSET', KEYS[1], id, cjson.encode(stored))
  if redis.call('HLEN', KEYS[1]) - 1 > max then
    local oldest, number
    local all = redis.call('HGETALL', KEYS[1])
    for i = 1, #all, 2 do
      if all[i] ~= '#' then
        local at = cjson.decode(all[i + 1]).n
        if not number or at < number then
          oldest, number = all[i], at
        end
      end
    end
    redis.call('HDEL', KEYS[1], oldest)
  end
  redis.call('PEXPIRE', KEYS[1], retention)
end

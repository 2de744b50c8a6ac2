-- A Spark session is kept as JSON: g the generation that used it last, s its
-- settings, n a number that rises with every change of the session's hash.
-- The number that was given last is the field '#'.
local function kept_spark_session(id)
  local text = redis.call('HGET', KEYS[1], id)
  if not text then
    return { g = 0, s = {} }
  end
  return cjson.decode(text)
end
-- Writes it; more than `most` are not kept, the longest unchanged goes.
local function keep_spark_session(id, kept, most, memory)
  kept.n = redis.call('HINCRBY', KEYS[1], '#', 1)
  redis.call('HSET', KEYS[1], id, cjson.encode(kept))
  if redis.call('HLEN', KEYS[1]) - 1 > most then
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
  redis.call('PEXPIRE', KEYS[1], memory)
end

-- Assigns a holder to one of several servers: its present one, or the one with the
-- fewest holders. Returns the number of the server, or nothing if all are excluded.
-- KEYS 1 servers of the holder, then the holders of each server
-- ARGV 1 holder, 2 organization if it must be alone on the server, else '', then the
--      name of each server
local best, fewest
for i = 2, #KEYS do
  if redis.call('SISMEMBER', KEYS[i], ARGV[1]) == 1 then
    return { tostring(i - 1) }
  end
end
for i = 2, #KEYS do
  local allowed = true
  if ARGV[2] ~= '' then
    local own = ARGV[2] .. ','
    for _, holder in ipairs(redis.call('SMEMBERS', KEYS[i])) do
      if string.sub(holder, 1, #own) ~= own then
        allowed = false
        break
      end
    end
  end
  local holders = redis.call('SCARD', KEYS[i])
  if allowed and (not best or holders < fewest) then
    best, fewest = i, holders
  end
end
if not best then
  return {}
end
redis.call('SADD', KEYS[best], ARGV[1])
redis.call('SADD', KEYS[1], ARGV[best + 1])
return { tostring(best - 1) }

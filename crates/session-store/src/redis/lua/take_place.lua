-- Gives a holder its place on one of several servers, or the place with the
-- fewest holders. Answers the place's number, or nothing if all are passed over.
-- KEYS 1 places of the holder, then the holders of each server
-- ARGV 1 holder, 2 organization if no other one may be there, else '',
--      then the name of each server
local best, fewest
for i = 2, #KEYS do
  if redis.call('SISMEMBER', KEYS[i], ARGV[1]) == 1 then
    return { tostring(i - 1) }
  end
end
for i = 2, #KEYS do
  local free = true
  if ARGV[2] ~= '' then
    local own = ARGV[2] .. ','
    for _, holder in ipairs(redis.call('SMEMBERS', KEYS[i])) do
      if string.sub(holder, 1, #own) ~= own then
        free = false
        break
      end
    end
  end
  local holders = redis.call('SCARD', KEYS[i])
  if free and (not best or holders < fewest) then
    best, fewest = i, holders
  end
end
if not best then
  return {}
end
redis.call('SADD', KEYS[best], ARGV[1])
redis.call('SADD', KEYS[1], ARGV[best + 1])
return { tostring(best - 1) }

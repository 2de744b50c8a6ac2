-- Ends the preparation of a binding if it is still the ticket's.
-- KEYS 1 details of the holder's bindings
-- ARGV 1 name of the binding, 2 ticket, 3 '1' if it is ready now
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local details = stored and cjson.decode(stored)
if not details or details.is ~= 'unready' or details.by ~= ARGV[2] then
  return { 'lost' }
end
details.till = 0
if ARGV[3] == '1' then
  details.is = 'ready'
end
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(details))
return { 'ok' }

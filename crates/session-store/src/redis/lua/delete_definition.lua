-- Deletes a definition if its version is the expected one.
-- KEYS 1 definitions, 2 bytes by organization
-- ARGV 1 name, 2 expected version, 3 organization or ''
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored then
  return { 'not-found' }
end
if string.match(stored, '^%d+') ~= ARGV[2] then
  return { 'conflict' }
end
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HDEL', KEYS[2], ARGV[3])
  else
    local bytes = #ARGV[1] + #stored - #string.match(stored, '^%d+ ')
    redis.call('HINCRBY', KEYS[2], ARGV[3], string.format('%d', -bytes))
  end
end
return { 'ok' }

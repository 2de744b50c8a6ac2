-- Writes a record that a fail-over lost, if the stored one is still the one
-- that was seen. Keys and arguments are save.lua's; then the version seen.
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[18] then
  return { 'conflict' }
end
save(11)
return { 'ok' }

-- Deletes a binding if its serial matches.
-- KEYS 1 holders by binding, 2 the holder's bindings, 3 exists while the id is reserved
-- ARGV 1 name of the binding, 2 serial, 3 ms for which the id stays reserved
local lines = lines_of(KEYS[2])
local index = index_of(lines, ARGV[1])
if not index or binding_of(lines[index]).serial ~= ARGV[2] then
  return { 'ok' }
end
table.remove(lines, index)
write_lines(KEYS[2], lines)
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] ~= '0' then
  redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
end
return { 'ok' }

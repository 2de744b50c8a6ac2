-- Gives a binding back if it is still this one.
-- KEYS 1 holders by binding, 2 the holder's bindings, 3 exists while the id is
--      kept from everybody
-- ARGV 1 name of the binding, 2 serial, 3 ms to keep the id from everybody
local lines = lines_of(KEYS[2])
local place = place_of(lines, ARGV[1])
if not place or binding_of(lines[place]).serial ~= ARGV[2] then
  return { 'ok' }
end
table.remove(lines, place)
write_lines(KEYS[2], lines)
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] ~= '0' then
  redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
end
return { 'ok' }

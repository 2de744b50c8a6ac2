-- Ends the preparation of a binding if it is still the ticket's.
-- KEYS 1 the holder's bindings
-- ARGV 1 name of the binding, 2 ticket, 3 '1' if it is ready now
local lines = lines_of(KEYS[1])
local place = place_of(lines, ARGV[1])
local binding = place and binding_of(lines[place])
if not binding or binding.is ~= 'unready' or binding.by ~= ARGV[2] then
  return { 'lost' }
end
if ARGV[3] == '1' then
  binding.is, binding.by = 'ready', '-'
end
binding.till = 0
lines[place] = line_of(binding)
write_lines(KEYS[1], lines)
return { 'ok' }

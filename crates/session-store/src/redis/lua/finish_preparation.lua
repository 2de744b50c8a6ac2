-- Ends the preparation of a binding if the ticket still owns it.
-- KEYS 1 the holder's bindings
-- ARGV 1 name of the binding, 2 ticket, 3 '1' if ready
local lines = lines_of(KEYS[1])
local index = index_of(lines, ARGV[1])
local binding = index and binding_of(lines[index])
if not binding or binding.state ~= 'unready' or binding.preparer ~= ARGV[2] then
  return { 'lost' }
end
if ARGV[3] == '1' then
  binding.state, binding.preparer = 'ready', '-'
end
binding.expires = 0
lines[index] = line_of(binding)
write_lines(KEYS[1], lines)
return { 'ok' }

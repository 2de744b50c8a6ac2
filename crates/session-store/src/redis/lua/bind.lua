-- Creates a binding of a Spark session, or returns the reason against it.
-- KEYS 1 holders by binding, 2 the holder's bindings, 3 seal, 4 exists while the id is
--      reserved
-- ARGV 1 holder, 2 name of the binding, 3 generation, 4 ticket, 5 ms to prepare it or
--      '', 6 maximum number of bindings
local generation, now = tonumber(ARGV[3]), now_ms()
if generation <= tonumber(redis.call('GET', KEYS[3]) or -1) then
  return { 'sealed' }
end
local holder = redis.call('HGET', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[4]) == 1 or holder and holder ~= ARGV[1] then
  return { 'taken' }
end

local lines = lines_of(KEYS[2])
local function release(index)
  local binding = binding_of(lines[index])
  binding.state = 'releasing'
  lines[index] = line_of(binding)
  write_lines(KEYS[2], lines)
  return { 'release', lines[index] }
end
-- Writes the binding as the most recently bound one.
local function write_last(index, binding)
  table.remove(lines, index)
  lines[#lines + 1] = line_of(binding)
  write_lines(KEYS[2], lines)
end
local unprepared = ARGV[5] == ''
local preparer, expires = ARGV[4], unprepared and 0 or now + ARGV[5]

local index = index_of(lines, ARGV[2])
if index then
  local binding = binding_of(lines[index])
  if binding.state == 'releasing' or binding.generation ~= generation then
    return release(index)
  end
  local outcome = 'ready'
  if binding.state ~= 'ready' then
    if binding.expires > now and binding.preparer ~= preparer then
      outcome = 'wait'
    elseif unprepared then
      binding.state, binding.preparer, binding.expires = 'ready', '-', 0
    else
      binding.preparer, binding.expires, outcome = preparer, expires, 'prepare'
    end
  end
  write_last(index, binding)
  return { outcome }
end

if #lines >= tonumber(ARGV[6]) then
  return release(1)
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[1])
write_last(#lines + 1, { name = ARGV[2], generation = generation, state = unprepared and 'ready' or 'unready',
  serial = ARGV[4], preparer = unprepared and '-' or preparer, expires = expires })
return { unprepared and 'ready' or 'prepare' }

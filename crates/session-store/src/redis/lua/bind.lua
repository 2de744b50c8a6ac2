-- Makes a binding of a Spark session, or says why not.
-- KEYS 1 holders by binding, 2 the holder's bindings, 3 seal, 4 exists while
--      the id is kept from everybody
-- ARGV 1 holder, 2 name of the binding, 3 generation, 4 ticket,
--      5 ms to prepare it or '', 6 limit
local generation, now = tonumber(ARGV[3]), now_ms()
if generation <= tonumber(redis.call('GET', KEYS[3]) or -1) then
  return { 'sealed' }
end
local holder = redis.call('HGET', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[4]) == 1 or holder and holder ~= ARGV[1] then
  return { 'taken' }
end

local lines = lines_of(KEYS[2])
local function release(place)
  local binding = binding_of(lines[place])
  binding.is = 'releasing'
  lines[place] = line_of(binding)
  write_lines(KEYS[2], lines)
  return { 'release', lines[place] }
end
-- It counts as bound last.
local function write_last(place, binding)
  table.remove(lines, place)
  lines[#lines + 1] = line_of(binding)
  write_lines(KEYS[2], lines)
end
local unprepared = ARGV[5] == ''
local by, till = ARGV[4], unprepared and 0 or now + ARGV[5]

local place = place_of(lines, ARGV[2])
if place then
  local binding = binding_of(lines[place])
  if binding.is == 'releasing' or binding.generation ~= generation then
    return release(place)
  end
  local answer = 'ready'
  if binding.is ~= 'ready' then
    if binding.till > now and binding.by ~= by then
      answer = 'wait'
    elseif unprepared then
      binding.is, binding.by, binding.till = 'ready', '-', 0
    else
      binding.by, binding.till, answer = by, till, 'prepare'
    end
  end
  write_last(place, binding)
  return { answer }
end

if #lines >= tonumber(ARGV[6]) then
  return release(1)
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[1])
write_last(#lines + 1, { name = ARGV[2], generation = generation, is = unprepared and 'ready' or 'unready',
  serial = ARGV[4], by = unprepared and '-' or by, till = till })
return { unprepared and 'ready' or 'prepare' }

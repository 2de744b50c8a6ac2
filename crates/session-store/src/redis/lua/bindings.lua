-- The bindings of a holder, one per line, least recently bound first: "<id> <server>
-- <generation> <state> <serial> <preparer> <expires>". The preparer owns the
-- preparation until `expires`; '-' and 0 without one.
local function lines_of(key)
  local lines = {}
  for line in string.gmatch(redis.call('GET', key) or '', '[^\n]+') do
    lines[#lines + 1] = line
  end
  return lines
end
local function write_lines(key, lines)
  if #lines == 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, table.concat(lines, '\n'))
  end
end
local function index_of(lines, name)
  for i, line in ipairs(lines) do
    if string.sub(line, 1, #name + 1) == name .. ' ' then
      return i
    end
  end
end
local function binding_of(line)
  local name, generation, state, serial, preparer, expires =
    string.match(line, '^(%S+ %S+) (%d+) (%a+) (%S+) (%S+) (%d+)$')
  return { name = name, generation = tonumber(generation), state = state, serial = serial, preparer = preparer,
    expires = tonumber(expires) }
end
local function line_of(binding)
  return string.format('%s %d %s %s %s %d', binding.name, binding.generation, binding.state, binding.serial,
    binding.preparer, binding.expires)
end

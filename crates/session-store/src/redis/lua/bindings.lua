-- A holder's bindings of Spark sessions, one a line, the least recently bound
-- first: "<id> <server> <generation> <is> <serial> <preparer> <till>". Until
-- `till` the preparer has it; '-' and 0 when nobody has.
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
local function place_of(lines, name)
  for i, line in ipairs(lines) do
    if string.sub(line, 1, #name + 1) == name .. ' ' then
      return i
    end
  end
end
local function binding_of(line)
  local name, generation, is, serial, by, till = string.match(line, '^(%S+ %S+) (%d+) (%a+) (%S+) (%S+) (%d+)$')
  return { name = name, generation = tonumber(generation), is = is, serial = serial, by = by, till = tonumber(till) }
end
local function line_of(binding)
  return string.format('%s %d %s %s %s %d', binding.name, binding.generation, binding.is, binding.serial,
    binding.by, binding.till)
end

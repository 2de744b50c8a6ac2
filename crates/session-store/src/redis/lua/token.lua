-- A ledger is a sequence of tokens, each after its length in two bytes: "<id>
-- <expires_at> <first use or ''> <last use or ''> <details>".
local function tokens_of(text)
  local tokens, at = {}, 1
  while at <= #text do
    local length = struct.unpack('>I2', text, at)
    local id, expires_at, first, last, details =
      string.match(string.sub(text, at + 2, at + 1 + length), '^(%S+) (%d+) (%d*) (%d*) (.*)$')
    tokens[#tokens + 1] = { id = id, expires_at = tonumber(expires_at), first = first, last = last, details = details }
    at = at + 2 + length
  end
  return tokens
end
local function token_text(token)
  local text = table.concat({ token.id, string.format('%d', token.expires_at), token.first, token.last,
    token.details }, ' ')
  return struct.pack('>I2', #text) .. text
end
local function tokens_text(tokens)
  local parts = {}
  for _, token in ipairs(tokens) do
    parts[#parts + 1] = token_text(token)
  end
  return table.concat(parts)
end

-- A token is "<id> <expires_at> <first use or ''> <last use or ''> <details>".
local function token_of(text)
  local id, expires_at, first, last, details = string.match(text, '^(%S+) (%d+) (%d*) (%d*) (.*)$')
  return { id = id, expires_at = tonumber(expires_at), first = first, last = last, details = details }
end
local function token_text(token)
  return table.concat({ token.id, string.format('%d', token.expires_at), token.first, token.last, token.details }, ' ')
end

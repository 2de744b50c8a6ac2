-- A session is one string: a line that scripts compare, "<layout> <version> <live>
-- <status> <generation> <token_epoch> <ledger_epoch> <lengths>", then the record, its
-- usage, its last changes, and its tokens while it lives; the lengths are of the first
-- three. This is layout 1; the ledger epoch is the token epoch of the stored tokens.
-- Records and changes are compressed: scripts do not decode them.
local function read_session(key)
  local text = redis.call('GET', key)
  if not text then
    return nil
  end
  local version, live, status, generation, token_epoch, ledger_epoch, record, use, history, at =
    string.match(text, '^1 (%d+) ([01]) (%a+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)\n()')
  assert(version, 'a session of another layout, or corrupt')
  local function take(length)
    local from = at
    at = from + length
    return string.sub(text, from, at - 1)
  end
  return {
    text = text,
    version = version,
    live = live == '1',
    status = status,
    generation = generation,
    token_epoch = token_epoch,
    ledger_epoch = ledger_epoch,
    record = take(tonumber(record)),
    use = take(tonumber(use)),
    history = take(tonumber(history)),
    tokens = string.sub(text, at),
  }
end
local function write_session(key, session)
  local line = table.concat({ '1', session.version, session.live and '1' or '0', session.status, session.generation,
    session.token_epoch, session.ledger_epoch, #session.record, #session.use, #session.history }, ' ')
  redis.call('SET', key, line .. '\n' .. session.record .. session.use .. session.history .. session.tokens)
end

-- A session is a list: 0 what scripts compare, 1 the record, 2 its use or '',
-- 3 its last changes, from 4 on its tokens while it lives. What scripts compare
-- is "<layout> <version> <live> <status> <generation> <token_epoch>
-- <ledger_epoch>": this is layout 1, and the ledger's epoch is the one that the
-- tokens are of.
-- Records and changes are packed: scripts pass them on and look into none.
local HEAD, RECORD, USE, HISTORY, TOKENS = 0, 1, 2, 3, 4
local function head_of(key)
  local text = redis.call('LINDEX', key, HEAD)
  if not text then
    return nil
  end
  local version, live, status, generation, token_epoch, ledger_epoch =
    string.match(text, '^1 (%d+) ([01]) (%a+) (%d+) (%d+) (%d+)$')
  assert(version, 'a session of another layout, or broken')
  return {
    version = version,
    live = live == '1',
    status = status,
    generation = generation,
    token_epoch = token_epoch,
    ledger_epoch = ledger_epoch,
  }
end
local function head_text(head)
  return table.concat({ '1', head.version, head.live and '1' or '0', head.status, head.generation,
    head.token_epoch, head.ledger_epoch }, ' ')
end

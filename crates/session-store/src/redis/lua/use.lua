-- The usage of a session: last_activity_at or '', rpcs, bytes_in, bytes_out,
-- open_stream_millis, and the names of the last usage deltas. Empty before the first
-- report.
local function use_of(session)
  local last, rpcs, bytes_in, bytes_out, millis, added =
    string.match(session.use, '^(%d*) (%d+) (%d+) (%d+) (%d+) (.*)$')
  return { last = last or '', totals = { rpcs or '0', bytes_in or '0', bytes_out or '0', millis or '0' },
    added = added or '' }
end
local function use_text(use)
  return use.last .. ' ' .. table.concat(use.totals, ' ') .. ' ' .. use.added
end

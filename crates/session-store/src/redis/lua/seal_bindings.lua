-- Rejects new bindings of a holder up to a generation, for a time.
-- KEYS 1 seal; ARGV 1 generation, 2 ms
local sealed = tonumber(redis.call('GET', KEYS[1]) or 0)
redis.call('SET', KEYS[1], math.max(sealed, tonumber(ARGV[1])), 'PX', ARGV[2])
return { 'ok' }

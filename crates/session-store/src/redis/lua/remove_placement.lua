-- Removes a placement.
-- KEYS 1 holders of the server, 2 servers of the holder; ARGV 1 holder, 2 server
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[2], ARGV[2])
return { 'ok' }

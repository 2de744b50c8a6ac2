-- Increments the heartbeat of a slot.
return redis.call('INCR', KEYS[1])

-- Raises the pulse of a slot. KEYS 1 pulse
return redis.call('INCR', KEYS[1])

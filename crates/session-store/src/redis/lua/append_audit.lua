-- KEYS 1 audit trail
-- ARGV 1 a record, 2 the trail's length
audit(KEYS[1], ARGV[1], ARGV[2])
return { 'ok' }

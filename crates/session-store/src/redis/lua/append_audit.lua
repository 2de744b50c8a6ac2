-- KEYS 1 audit trail
-- ARGV 1 record, 2 maximum length of the trail
audit(KEYS[1], ARGV[1], ARGV[2])
return { 'ok' }

-- A document is one hash: owner, body.
local owner, body, lifetime_ms = ARGV[1], ARGV[2], number(ARGV[3])
local found = redis.call('HGET', key, 'owner')
if found and found ~= owner then return {key, 'anothers'} end
redis.call('HSET', key, 'owner', owner, 'body', body)
live(lifetime_ms)
return {key, 'put'}

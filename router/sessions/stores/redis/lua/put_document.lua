-- A document is one hash: owner, body.
local owner, body, lifetime_ms, may_add = ARGV[1], ARGV[2], number(ARGV[3]), ARGV[4] == '1'
local found = redis.call('HGET', key, 'owner')
if found and found ~= owner then return {key, 'anothers'} end
if not found and not may_add then return {key, 'full'} end
redis.call('HSET', key, 'owner', owner, 'body', body)
live(lifetime_ms)
return {key, found and 'replaced' or 'put'}

-- A document is one hash: owner, body.
local owner, body, lifetime_ms, may_add = ARGV[1], ARGV[2], number(ARGV[3]), ARGV[4] == '1'
local found = redis.call('HGET', key, 'owner')
if found and found ~= owner then return {'anothers'} end
if not found and not may_add then return {'full'} end
redis.call('HSET', key, 'owner', owner, 'body', body)
live(lifetime_ms)
return {found and 'replaced' or 'put'}

local found = redis.call('HMGET', key, 'owner', 'body')
if found[1] ~= ARGV[1] then return {key, 'absent'} end
return {key, 'document', ARGV[1], found[2] or error('CORRUPT: no body')}

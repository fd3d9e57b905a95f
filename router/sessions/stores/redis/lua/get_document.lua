local found = redis.call('HMGET', key, 'owner', 'body')
if found[1] ~= ARGV[1] then return {'absent'} end
return {'document', found[2] or error('CORRUPT: no body')}

if redis.call('HGET', key, 'owner') ~= ARGV[1] then return {'absent'} end
redis.call('UNLINK', key)
return {'deleted'}

if redis.call('HGET', key, 'owner') ~= ARGV[1] then return {key, 'absent'} end
redis.call('UNLINK', key)
return {key, 'deleted'}

-- Deletes a session that cannot be read as well, so that its name is free again.
if redis.call('HGET', key, 'owner') ~= ARGV[1] and not find(ARGV[1]) then return {'absent'} end
redis.call('UNLINK', key)
return {'deleted'}

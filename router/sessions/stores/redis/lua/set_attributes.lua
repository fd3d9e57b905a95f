if not find(ARGV[1]) then return {key, 'absent'} end
write({'attributes', ARGV[2]})
return {key, 'set'}

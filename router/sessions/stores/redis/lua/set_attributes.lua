if not find(ARGV[1]) then return {'absent'} end
write({'attributes', ARGV[2]})
return {'set'}

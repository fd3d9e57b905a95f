local session = find(ARGV[1])
if not session or session.generation ~= ARGV[2] or session.epoch ~= number(ARGV[3]) then return {'stale'} end
write({'epoch', session.epoch + 1, 'view', ARGV[4]})
return {'committed'}

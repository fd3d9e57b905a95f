local session = find(ARGV[1])
if not session or session.fence ~= number(ARGV[2]) or session.holder == '' then return {'fenced'} end
write({'until', now + number(ARGV[3])})
return {'renewed'}

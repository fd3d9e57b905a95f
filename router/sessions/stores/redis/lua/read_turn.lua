local session, n = find(ARGV[1]), number(ARGV[2])
if not session or n < 1 or n > session.turns then return {'absent'} end
local found = turn(n) or error('CORRUPT: a turn is missing')
return {'turn', found.has_ended and 1 or 0, found.record}

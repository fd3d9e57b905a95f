local session, n = find(ARGV[1]), number(ARGV[2])
if not session or n < 1 or n > session.turns then return {key, 'absent'} end
local found = turn(n) or error('CORRUPT: a turn is missing')
return {key, 'turn', ARGV[1], found.has_ended and 1 or 0, found.record}

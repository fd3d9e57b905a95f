local session = find(ARGV[1])
if not session then return {'absent'} end
local starts_over, tail, view = unknown(session, ARGV[2], number(ARGV[3]), number(ARGV[4]))
local rest = redis.call('HMGET', key, 'attributes', 'created')
return {
  'loaded', session.generation, session.head, session.epoch, view, starts_over and 1 or 0, rest[1] or '',
  session.turns, session.claimed_until > now and 1 or 0, number(rest[2]), tail,
}

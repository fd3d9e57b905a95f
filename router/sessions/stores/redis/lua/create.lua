local owner, generation, attributes, turns, lifetime_ms = ARGV[1], ARGV[2], ARGV[3], number(ARGV[4]), number(ARGV[5])
local first_entry = 6

local session, is_anothers = find(owner)
if session or is_anothers then return {'there'} end
local changes = newborn(owner, generation)
put(changes, 'attributes', attributes, 'turns', turns, 'head', #ARGV - first_entry + 1,
  'bytes', SESSION_OVERHEAD_BYTES + #attributes + size_of(first_entry))
for n = 1, turns do put(changes, 't:' .. n, turn_text(true, 0, '')) end
for i = first_entry, #ARGV do put(changes, 'e:' .. (i - first_entry + 1), ARGV[i]) end
write(changes)
live(lifetime_ms)
return {'created'}

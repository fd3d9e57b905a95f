local owner, generation, fence, n = ARGV[1], ARGV[2], number(ARGV[3]), number(ARGV[4])
local ends, is_late, has_record, record = ARGV[5] == '1', ARGV[6] == '1', ARGV[7] == '1', ARGV[8]
local worker, lifetime_ms, first_entry = ARGV[9], number(ARGV[10]), 11

local session = find(owner)
if not session or session.generation ~= generation then return {'fenced'} end
-- A turn of that number with another fence is another turn: the one that is meant was lost in a failover.
local old = turn(n)
if not old or old.fence ~= fence then return {'fenced'} end
if ends and old.has_ended then return {'appended', session.head} end
local holds = session.fence == fence and session.holder ~= ''
if not holds and not (is_late and ends) then return {'fenced'} end

local changes, head = {}, session.head
for i = first_entry, #ARGV do
  head = head + 1
  put(changes, 'e:' .. head, ARGV[i])
end
local bytes = session.bytes + size_of(first_entry) + (has_record and #record - #old.record or 0)
put(changes, 'head', head, 'bytes', bytes)
if worker ~= '' then put(changes, 'worker', worker) end
if ends or has_record then put(changes, 't:' .. n, turn_text(ends or old.has_ended, fence, has_record and record or old.record)) end
if ends and holds then put_release(changes) end
write(changes)
live(lifetime_ms)
return {'appended', head, bytes}

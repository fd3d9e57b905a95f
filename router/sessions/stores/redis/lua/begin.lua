local owner, token = ARGV[1], ARGV[2]
local known_generation, known_head, known_epoch = ARGV[3], number(ARGV[4]), number(ARGV[5])
local creates, waits, max_waiting = ARGV[6] == '1', ARGV[7] == '1', number(ARGV[8])
local lease_ms, lifetime_ms, patience_ms = number(ARGV[9]), number(ARGV[10]), number(ARGV[11])
local idempotency_key, record, new_generation = ARGV[12], ARGV[13], ARGV[14]
local meant_turn, first_entry = number(ARGV[15]), 16

local changes = {}
local session, is_anothers = find(owner)
if not session then
  if is_anothers or not creates then return {'absent'} end
  changes = newborn(owner, new_generation)
  session = {
    generation = new_generation, fence = 0, claimed = 0, claimed_until = 0, line = '', head = 0, turns = 0, epoch = 0,
    worker = '', bytes = SESSION_OVERHEAD_BYTES,
  }
end

local is_claimed = session.claimed_until > now
local repeated = idempotency_key ~= '' and redis.call('HGET', key, 'k:' .. idempotency_key)
if repeated then
  repeated = number(repeated)
  local old = turn(repeated) or error('CORRUPT: a key without its turn')
  if old.has_ended or (is_claimed and session.claimed == repeated) then
    return {'repeated', repeated, old.has_ended and 1 or 0, old.record}
  end
end

local line = read_line(session)
for i = #line - 1, 1, -2 do
  if now - line[i + 1] > patience_ms then
    table.remove(line, i + 1)
    table.remove(line, i)
  end
end

if is_claimed or (line[1] or token) ~= token then
  local place = place_in(line, token)
  if not waits or (place == 0 and #line >= max_waiting * 2) then
    place = 0
  elseif place == 0 then
    put(line, token, now)
    place = #line / 2
  else
    line[place * 2] = now
  end
  local text = line_text(line)
  if text ~= session.line then write({'line', text}) end
  return {'busy', place}
end

leave(line, token)
local starts_over, tail, view = unknown(session, known_generation, known_head, known_epoch)
local head, number_of_turn = session.head, session.turns + 1
local appends = #ARGV >= first_entry and #tail == 0 and not starts_over and meant_turn == number_of_turn
if appends then
  for i = first_entry, #ARGV do
    head = head + 1
    put(changes, 'e:' .. head, ARGV[i])
  end
end
local bytes = session.bytes + #record + (appends and size_of(first_entry) or 0)
-- Fences go by the clock, so that two servers that were primary at the same time give different ones.
local fence = math.max(session.fence + 1, now_us)
put(changes, 'fence', fence, 'holder', token, 'claimed', number_of_turn, 'until', now + lease_ms, 'line', line_text(line),
  'turns', number_of_turn, 'head', head, 'bytes', bytes, 't:' .. number_of_turn, turn_text(false, fence, record))
if idempotency_key ~= '' then put(changes, 'k:' .. idempotency_key, number_of_turn) end
write(changes)
live(lifetime_ms)
return {
  'begun', session.generation, fence, number_of_turn, head, session.epoch, view, starts_over and 1 or 0,
  appends and 1 or 0, session.worker, tail, bytes,
}

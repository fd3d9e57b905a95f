-- The common part of all scripts, put before each of them.
--
-- A session is one hash, so that no part of it can expire, be evicted or move to another node alone:
--   owner generation created fence holder claimed until line head turns epoch view worker attributes bytes
--   e:N  entry N          t:N  turn N: has it ended (0, 1), its fence, a colon, its record
--   k:K  number of the turn with idempotency key K
-- A script reads and checks everything before its first write: a script that fails has changed nothing.

local key = KEYS[1]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local CHUNK = 1000 -- arguments of one call: the stack of Lua holds a few thousand
local MAX_TAIL_BYTES = 4194304 -- of entries in one reply: other calls wait meanwhile
local SESSION_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES = 512, 64 -- charged to owners besides

local function number(value)
  return tonumber(value) or error('CORRUPT: not a number')
end

-- The session, or nil and whether another owner has it.
local function find(owner)
  local found = redis.call('HMGET', key, 'owner', 'generation', 'fence', 'holder', 'claimed', 'until', 'line',
    'head', 'turns', 'epoch', 'worker', 'bytes')
  if not found[1] then
    if redis.call('EXISTS', key) == 1 then error('CORRUPT: no owner') end
    return nil, false
  end
  if found[1] ~= owner then return nil, true end
  return {
    generation = found[2] or error('CORRUPT: no generation'),
    fence = number(found[3]),
    holder = found[4],
    claimed = number(found[5]),
    claimed_until = number(found[6]),
    line = found[7],
    head = number(found[8]),
    turns = number(found[9]),
    epoch = number(found[10]),
    worker = found[11],
    bytes = number(found[12] or 0),
  }
end

-- Fields of a new session, as names and values for HSET.
local function newborn(owner, generation)
  return {
    'owner', owner, 'generation', generation, 'created', now_us, 'fence', 0, 'holder', '', 'claimed', 0, 'until', 0,
    'line', '', 'head', 0, 'turns', 0, 'epoch', 0, 'worker', '', 'bytes', SESSION_OVERHEAD_BYTES,
  }
end

local function put(list, ...)
  for _, value in ipairs({...}) do list[#list + 1] = value end
end

local function write(list)
  for i = 1, #list, CHUNK do
    redis.call('HSET', key, unpack(list, i, math.min(i + CHUNK - 1, #list)))
  end
end

-- Entries first … last, as many as one tail may have.
local function entries(first, last)
  local size, stop = 0, first - 1
  while stop < last and size < MAX_TAIL_BYTES do
    stop = stop + 1
    size = size + redis.call('HSTRLEN', key, 'e:' .. stop)
  end
  local all = {}
  for start = first, stop, CHUNK do
    local names = {}
    for n = start, math.min(start + CHUNK - 1, stop) do names[#names + 1] = 'e:' .. n end
    for _, entry in ipairs(redis.call('HMGET', key, unpack(names))) do
      all[#all + 1] = entry or error('CORRUPT: an entry is missing')
    end
  end
  return all
end

-- Size of the entries in the arguments from there on.
local function size_of(first)
  local size = 0
  for i = first, #ARGV do size = size + #ARGV[i] + ENTRY_OVERHEAD_BYTES end
  return size
end

-- The turn, or nil.
local function turn(n)
  local stored = redis.call('HGET', key, 't:' .. n)
  if not stored then return nil end
  local ended, fence, record = string.match(stored, '^([01])(%d+):(.*)$')
  if not ended then error('CORRUPT: a turn') end
  return {has_ended = ended == '1', fence = number(fence), record = record}
end

local function turn_text(has_ended, fence, record)
  return (has_ended and '1' or '0') .. string.format('%d', fence) .. ':' .. record
end

-- Adds the fields of a free claim, as names and values for HSET.
local function put_release(list)
  put(list, 'holder', '', 'claimed', 0, 'until', 0)
end

-- Whether the caller must drop its copy, also if it knows more entries than there are (an older state was restored); the
-- entries that it lacks; the view, if the caller has another.
local function unknown(session, generation, head, epoch)
  local is_same = generation == session.generation and head <= session.head
  local tail = entries((is_same and head or 0) + 1, session.head)
  local view = false
  if not is_same or epoch ~= session.epoch then view = redis.call('HGET', key, 'view') end
  return not is_same and math.max(head, session.head) > 0, tail, view
end

local function live(lifetime_ms)
  if lifetime_ms > 0 then
    redis.call('PEXPIREAT', key, now + lifetime_ms)
  else
    redis.call('PERSIST', key)
  end
end

-- The line, in order: a flat list of token, time of its last call.
local function read_line(session)
  if session.line == '' then return {} end
  local is_good, line = pcall(cmsgpack.unpack, session.line)
  if not is_good or type(line) ~= 'table' then error('CORRUPT: the line') end
  return line
end

local function line_text(line)
  return #line > 0 and cmsgpack.pack(line) or ''
end

local function place_in(line, token)
  for i = 1, #line, 2 do
    if line[i] == token then return (i + 1) / 2 end
  end
  return 0
end

local function leave(line, token)
  local place = place_in(line, token)
  if place > 0 then
    table.remove(line, place * 2)
    table.remove(line, place * 2 - 1)
  end
  return place > 0
end

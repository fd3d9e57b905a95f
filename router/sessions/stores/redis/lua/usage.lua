-- Counts what an owner has. Its sessions and documents may be on other nodes. The count is a hash, and a sorted set with an x
-- after the name has the times when its members expire (ms):
--   s d b   sessions, documents, bytes      m:ID   bytes of one of them, whose ID ends in s or d
-- ARGV after the owner: ID, bytes (0: deleted), time until it expires (ms, 0: never), and so on.
local ages = key .. 'x'
local total = {}
for _, kind in ipairs({'s', 'd', 'b'}) do total[kind] = number(redis.call('HGET', key, kind) or 0) end

local function set(id, bytes)
  local old, kind = number(redis.call('HGET', key, 'm:' .. id) or 0), string.sub(id, -1)
  total.b = total.b + bytes - old
  if bytes > 0 then
    if old == 0 then total[kind] = total[kind] + 1 end
    redis.call('HSET', key, 'm:' .. id, bytes)
  elseif old > 0 then
    total[kind] = total[kind] - 1
    redis.call('HDEL', key, 'm:' .. id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', ages, '-inf', now, 'LIMIT', 0, CHUNK)) do
  set(id, 0)
  redis.call('ZREM', ages, id)
end
for i = 2, #ARGV, 3 do
  local id, bytes, expires = ARGV[i], number(ARGV[i + 1]), number(ARGV[i + 2])
  set(id, bytes)
  if bytes > 0 and expires > 0 then redis.call('ZADD', ages, now + expires, id) else redis.call('ZREM', ages, id) end
end
redis.call('HSET', key, 's', total.s, 'd', total.d, 'b', total.b)
return {'usage', total.s, total.d, total.b}

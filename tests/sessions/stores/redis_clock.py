"""Redis's clock cannot be moved, but what the store holds there can be made older."""

from __future__ import annotations

from tests.sessions.stores.redis_servers import RedisProcess

_AGE = """
for _, key in ipairs(redis.call('KEYS', 'wr1:*')) do
  local by_ms = tonumber(ARGV[1])
  local left_ms = redis.call('PTTL', key)
  if redis.call('TYPE', key).ok == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -by_ms, member) end
  elseif left_ms >= 0 and left_ms <= by_ms then
    redis.call('DEL', key)
  else
    if left_ms > 0 then redis.call('PEXPIRE', key, left_ms - by_ms) end
    if redis.call('HGET', key, 'until') then redis.call('HINCRBY', key, 'until', -by_ms) end
    local line = redis.call('HGET', key, 'line')
    if line and line ~= '' then
      line = cmsgpack.unpack(line)
      for i = 2, #line, 2 do line[i] = line[i] - by_ms end
      redis.call('HSET', key, 'line', cmsgpack.pack(line))
    end
  end
end
"""


def advance(server: RedisProcess, seconds: float) -> None:
    """Leases, places in lines and lifetimes end so much sooner."""
    server.ask("EVAL", _AGE, 0, round(seconds * 1000))

"""Sessions in Redis: alone, with Sentinels, or as a Cluster."""

from router.sessions.redis.errors import Reason, RedisUnavailable
from router.sessions.redis.store import RedisLimits, RedisStore

__all__ = ["Reason", "RedisLimits", "RedisStore", "RedisUnavailable"]

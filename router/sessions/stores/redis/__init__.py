"""Sessions in Redis: alone, with Sentinels, or as a Cluster."""

from router.sessions.stores.redis.errors import Reason, RedisUnavailable
from router.sessions.stores.redis.runner import RedisLimits
from router.sessions.stores.redis.store import RedisStore

__all__ = ["Reason", "RedisLimits", "RedisStore", "RedisUnavailable"]

"""Maps errors of redis-py, sockets and scripts to those of the store's contract. Messages have no key, value or password."""

from __future__ import annotations

from enum import StrEnum

from redis import exceptions as redis_errors
from redis.asyncio.sentinel import MasterNotFoundError

from router.sessions.stores.contract import Corrupt, StoreUnavailable


class Reason(StrEnum):
    """Why Redis was unavailable: a closed set."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    PAUSED = "paused"
    """Redis did not answer lately, and is not asked for a while."""
    NO_PRIMARY = "no_primary"
    READONLY = "readonly"
    LOADING = "loading"
    FULL = "full"
    NO_REPLICAS = "no_replicas"
    UNCONFIRMED = "unconfirmed"
    """Fewer replicas than required confirmed the write: it may be lost, or not."""
    CLUSTER = "cluster"
    AUTH = "auth"
    TOO_OLD = "too_old"
    REFUSED = "refused"


class RedisUnavailable(StoreUnavailable):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"Redis: {reason}" + (f" ({detail})" if detail else ""))
        self.reason = reason
        self.was_asked = reason is not Reason.PAUSED


_BY_CLASS: tuple[tuple[type[BaseException], Reason], ...] = (
    (MasterNotFoundError, Reason.NO_PRIMARY),
    (redis_errors.AuthenticationError, Reason.AUTH),
    (redis_errors.NoPermissionError, Reason.AUTH),
    (redis_errors.BusyLoadingError, Reason.LOADING),
    (redis_errors.ReadOnlyError, Reason.READONLY),
    (redis_errors.OutOfMemoryError, Reason.FULL),
    (redis_errors.ClusterError, Reason.CLUSTER),
    (redis_errors.AskError, Reason.CLUSTER),
    (redis_errors.TryAgainError, Reason.CLUSTER),
    (redis_errors.TimeoutError, Reason.TIMEOUT),
    (TimeoutError, Reason.TIMEOUT),
    (redis_errors.ConnectionError, Reason.CONNECTION),
    (redis_errors.InvalidResponse, Reason.CONNECTION),
    (OSError, Reason.CONNECTION),
)
_BY_WORD = {
    "WRONGTYPE": None,
    "CORRUPT": None,
    "NOREPLICAS": Reason.NO_REPLICAS,
    "READONLY": Reason.READONLY,
    "OOM": Reason.FULL,
    "MISCONF": Reason.FULL,
    "MASTERDOWN": Reason.READONLY,
}
"""Errors inside a script come as text that differs between releases. None: Redis holds something that no router wrote."""


def translate(error: BaseException) -> StoreUnavailable | Corrupt:
    """``error``: raised by redis-py or a socket, or an error reply."""
    if isinstance(error, RedisUnavailable):
        return error
    for kind, reason in _BY_CLASS:
        if isinstance(error, kind):
            return RedisUnavailable(reason)
    text = str(error)
    for word, found in _BY_WORD.items():
        if word in text:
            return RedisUnavailable(found) if found else Corrupt("Redis holds something there that no router wrote")
    return RedisUnavailable(Reason.REFUSED, text.partition(" script:")[0][:80])


def ends_connection(reply: object) -> bool:
    """True: the reply says that the server takes no writes, so its connections are of no use."""
    return isinstance(reply, (redis_errors.ReadOnlyError, redis_errors.MasterDownError)) or (
        isinstance(reply, redis_errors.ResponseError) and "READONLY" in str(reply)
    )

"""The store's errors as clients are told of them."""

from __future__ import annotations

import logging

from router.core.errors import RateLimited, RouterError, SessionCorrupt, StateUnavailable, StorageFull
from router.sessions.stores.contract import Corrupt, Crowded, OwnerFull, StoreUnavailable

log = logging.getLogger("warmroute.sessions")


class NotAsked(StateUnavailable):
    """The store was not asked, and holds nothing of the call."""


def client_error(error: Crowded | OwnerFull | StoreUnavailable | Corrupt) -> RouterError:
    match error:
        case Crowded():
            return RateLimited(f"{error}: send fewer at once, or smaller ones", retry_after_s=1)
        case OwnerFull():
            return StorageFull(f"the tenant has stored {error}: delete sessions, conversations or responses")
        case StoreUnavailable():
            log.warning("the session store failed", extra={"why": str(error)})
            kind = StateUnavailable if error.was_asked else NotAsked
            return kind("the session store cannot be reached", retry_after_s=1)
    return unreadable(str(error))


def unreadable(why: str, sid: str = "") -> SessionCorrupt:
    """``why``: for the log alone."""
    log.error("a session cannot be read", extra={"why": why, "sid": sid})
    return SessionCorrupt("what is stored of this session cannot be read")

"""Asks whether Redis may evict sessions, and whether it does: Redis does not report that to clients."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from router.sessions.stores.redis.pool import Command, Reply

log = logging.getLogger("warmroute.sessions")

QUESTIONS: Sequence[Command] = (("INFO", "memory"), ("INFO", "stats"))
KEEPS_ALL = "noeviction"

_FIELD = re.compile(rb"^(maxmemory|maxmemory_policy|evicted_keys):(\S+)", re.MULTILINE)


class Evictions:
    """Evictions of the server that is asked; in a Cluster, of one node."""

    def __init__(self) -> None:
        self.may_evict = False
        """The memory of Redis is bounded, and its policy deletes keys at the bound."""
        self.evicted_keys = 0
        """Since the server started, in all its databases."""
        self._policy = ""
        self._was_asked = False

    def learn(self, replies: Sequence[Reply]) -> None:
        """``replies``: to QUESTIONS. Logs a wrong policy when it begins, and each time that more keys were evicted."""
        told = dict(_FIELD.findall(b"\n".join(reply for reply in replies if isinstance(reply, bytes))))
        policy = told.get(b"maxmemory_policy", b"").decode("ascii", "replace")
        if not policy:
            if not self._was_asked:
                log.warning("Redis does not say whether it evicts sessions: allow its user the command INFO")
            self._was_asked = True
            return
        evicted_keys = int(told.get(b"evicted_keys", b"0"))
        self.may_evict = policy != KEEPS_ALL and told.get(b"maxmemory") != b"0"
        if self.may_evict and policy != self._policy:
            log.error(
                "Redis may throw sessions away when its memory is full: set its maxmemory-policy to noeviction",
                extra={"policy": policy},
            )
        if self._was_asked and evicted_keys > self.evicted_keys:
            log.error(
                "Redis has thrown keys away, and sessions may be among them: give it more memory, and set its "
                "maxmemory-policy to noeviction",
                extra={"evicted_keys": evicted_keys - self.evicted_keys, "policy": policy},
            )
        self.evicted_keys, self._policy, self._was_asked = evicted_keys, policy, True

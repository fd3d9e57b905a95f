"""Claims on sessions: one for each turn that runs here or waits. A claim is renewed while its turn runs, and released when it
ends. A turn that waits here for another one of this replica is woken at its end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from router.core.request.request import Tenant
from router.sessions.release import LeaseReleaser
from router.sessions.stores.contract import Begun, Sid, Store

RENEWALS = 3
"""Renewals within one lease."""


@dataclass(slots=True, eq=False)
class Claim:
    """One turn's claim on its session: held if ``fence`` is not 0, else wanted. ``is_asked``: the store may know of it."""

    sid: Sid
    owner: Tenant
    token: str
    is_asked: bool = False
    generation: str = ""
    fence: int = 0
    turn: int = 0
    renewed_at: float = 0.0


class Claims:
    """``run`` must be running."""

    def __init__(self, store: Store, lease_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self.releaser = LeaseReleaser(clock)
        self._lease_s = lease_s
        self._clock = clock
        self.live: set[Claim] = set()
        self.endings: dict[Sid, asyncio.Event] = {}
        """Ends of turns that others wait for, by session. Each goes with the last that waits."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS / 2)
            self.renew()

    def renew(self) -> None:
        """Renews the claims that are due. A lost claim is noticed when its turn writes."""
        now = self._clock()
        for claim in self.live:
            if claim.fence and now - claim.renewed_at > self._lease_s / RENEWALS:
                claim.renewed_at = now
                renew = partial(self._store.renew, claim.sid, claim.owner, claim.fence, self._lease_s)
                self.releaser.renew(renew)

    @contextmanager
    def wanted(self, sid: Sid, owner: Tenant) -> Iterator[Claim]:
        """A claim that is wanted within the block. After it, the claim and its place in the line are released."""
        claim = Claim(sid, owner, secrets.token_hex(16))
        self.live.add(claim)
        try:
            yield claim
        finally:
            self.live.discard(claim)
            self._give_up(claim)

    def hold(self, claim: Claim, begun: Begun) -> None:
        claim.generation, claim.fence, claim.turn = begun.generation, begun.fence, begun.turn
        claim.renewed_at = self._clock()

    def drop(self, claim: Claim) -> None:
        """Releases the claim, which may then be wanted of another session."""
        self._give_up(claim)
        claim.is_asked, claim.fence, claim.turn = False, 0, 0

    async def pause(self, sid: Sid, at_most_s: float) -> bool:
        """Waits until another turn of the session may be over. True: one of this replica's is."""
        ending = self.endings.setdefault(sid, asyncio.Event())
        try:
            async with asyncio.timeout(at_most_s):
                return await ending.wait()
        except TimeoutError:
            return False

    def _give_up(self, claim: Claim) -> None:
        if claim.fence:
            release = partial(self._store.release, claim.sid, claim.owner, claim.fence)
            self.releaser.release_later(release, self._lease_s)
        elif claim.is_asked and not claim.turn:
            leave = partial(self._store.leave, claim.sid, claim.owner, claim.token)
            self.releaser.release_later(leave, self._lease_s)
        if (ending := self.endings.pop(claim.sid, None)) is not None:
            ending.set()

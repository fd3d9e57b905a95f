"""Looks at one worker again and again: is it there, what does it serve, how busy is it. Requests never wait for this."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from router.core.attempt import AttemptFailed
from router.core.fleet import Fleet, Member, ModelCard
from router.core.health import State
from router.core.load import LoadReport
from router.core.reply import Reply
from router.upstream.exchange import Upstream
from router.upstream.load import BadLoad, parse_load

log = logging.getLogger("warmroute.fleet")

MAX_MODELS = 1000
"""Models and adapters that one worker may list."""


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """Seconds."""

    probe_interval_s: float
    ill_interval_s: float
    models_interval_s: float
    probe_timeout_s: float
    load_interval_s: float
    load_timeout_s: float


class _Models(msgspec.Struct):
    data: list[ModelCard]


class WorkerWatch:
    """The watch over one member, until its task is cancelled."""

    def __init__(
        self, member: Member, fleet: Fleet, upstream: Upstream, settings: WatchSettings, clock: Callable[[], float]
    ) -> None:
        self._member = member
        self._fleet = fleet
        self._upstream = upstream
        self._settings = settings
        self._clock = clock
        self._models_due = 0.0
        self.has_looked = asyncio.Event()
        """Set once the worker was probed and its load read, whatever came of it."""

    async def run(self) -> None:
        await self.probe()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe_forever())
            tasks.create_task(self._poll_forever())

    async def _probe_forever(self) -> None:
        settings = self._settings
        while True:
            is_well = self._member.health.state is State.UP and self._member.models
            await asyncio.sleep(settings.probe_interval_s if is_well else settings.ill_interval_s)
            await self.probe()

    async def _poll_forever(self) -> None:
        while True:
            await self.poll()
            self.has_looked.set()
            await asyncio.sleep(self._settings.load_interval_s)

    async def probe(self) -> None:
        """Once: health, and the models if it is time for them."""
        health = self._member.health
        reply = await self._get("/health", self._settings.probe_timeout_s)
        now = self._clock()
        if reply is not None and reply.status == 200:
            if not self._member.models or now >= self._models_due:
                await self._read_models(now)
            changed = bool(self._member.models) and health.on_probe_answered(now)
        else:
            changed = health.on_probe_failed(now)
            if health.failed_probes >= health.rules.failures:
                self._upstream.give_up(self._member.address)
        if changed:
            self._fleet.on_health_changed(self._member)
        elif health.state is State.EJECTED and reply is not None and reply.status == 200:
            self._fleet.on_alive(self._member)

    async def poll(self) -> None:
        """Once: the load. A worker that does not say is not ill; its last figures are believed until they are stale."""
        asked = self._fleet.own_load(self._member)
        report = await self._read_load()
        if report is None:
            self._fleet.expire_load(self._member, self._clock())
        elif self._fleet.on_load(self._member, report, asked, self._clock()):
            log.info("worker restarted: its cache is empty", extra={"worker": self._member.name})

    async def _read_load(self) -> LoadReport | None:
        if self._member.health.state is State.EJECTED:
            return None
        reply = await self._get("/metrics", self._settings.load_timeout_s)
        if reply is None or reply.status != 200:
            return None
        try:
            return parse_load(reply.body)
        except BadLoad as error:
            log.warning("unreadable metrics", extra={"worker": self._member.name, "error": str(error)})
            return None

    async def _read_models(self, now: float) -> None:
        reply = await self._get("/v1/models", self._settings.probe_timeout_s)
        if reply is None or reply.status != 200:
            return
        try:
            listed = msgspec.json.decode(reply.body, type=_Models).data[:MAX_MODELS]
        except msgspec.MsgspecError as error:
            log.warning("unreadable model list", extra={"worker": self._member.name, "error": str(error)})
            return
        self._models_due = now + self._settings.models_interval_s
        self._fleet.set_models(self._member, {card["id"]: card for card in listed if isinstance(card.get("id"), str)})

    async def _get(self, path: str, timeout_s: float) -> Reply | None:
        try:
            async with asyncio.timeout(timeout_s):
                with self._upstream.exchange(self._member.address) as exchange:
                    return await exchange.get(path)
        except (AttemptFailed, TimeoutError):
            return None

"""Looks at one worker again and again: is it there, what does it serve, how busy is it. Requests never wait for this.

What a worker says is bounded in size and in what is kept of it, and is read in steps of a few milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from router.config.workers import LoadConfig, ProbesConfig
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import WorkerState
from router.core.fleet.load import LoadReport
from router.core.fleet.member import Member, ModelCard
from router.core.printable import printable
from router.core.request.attempt import AttemptFailed, CannotConnect, ReplyTooLarge, WorkerDied
from router.core.request.reply import Reply
from router.upstream.exchange import Upstream
from router.upstream.load import BadLoad, LoadReader, slices

log = logging.getLogger("warmroute.fleet")

MAX_MODELS = 1000
"""Models and adapters that one worker may list."""

MAX_NAME_CHARS, MAX_FIELD_BYTES = 256, 512

MAX_PROBE_BYTES, MAX_METRICS_BYTES = 1 << 20, 4 << 20
"""Of answers to looks. A worker of many engines writes some hundred KB of metrics."""

TOLD_EVERY_S, MAX_TOLD = 60.0, 16
"""An error of a probe that lasts is logged so often, and so many different ones of one worker in that time."""

MAX_ERROR_CHARS = 200

ILL_INTERVAL_S = 0.25
"""Between two probes of a worker that is not up."""

MODELS_INTERVAL_S = 5.0
"""Between two reads of a worker's /v1/models."""

LOAD_TIMEOUT_S = 2.0
"""For a worker's /metrics."""

WAKE_WAIT_S = 1.0
"""A worker that sleeps is asked for its load no less often: that is how its waking is noticed."""

BAD_LOAD_WAIT_S = 5.0
"""Until a worker is asked again whose metrics were too large or made no sense: reading them costs others' time."""


_NOTHING = msgspec.Raw()


class _Card(msgspec.Struct):
    """What is kept of a model's card. Its other members are skipped, and nothing is made of them."""

    id: msgspec.Raw = _NOTHING
    object: msgspec.Raw = _NOTHING
    created: msgspec.Raw = _NOTHING
    owned_by: msgspec.Raw = _NOTHING
    root: msgspec.Raw = _NOTHING
    parent: msgspec.Raw = _NOTHING
    max_model_len: msgspec.Raw = _NOTHING


class _Models(msgspec.Struct):
    data: list[_Card]


_scalar = msgspec.json.Decoder(str | int | float | bool | None)


def read_models(body: bytes) -> dict[str, ModelCard]:
    """By name. A card without a sane name is left out, and so is a member that is long or no scalar. Raises
    msgspec.MsgspecError, RecursionError."""
    cards: dict[str, ModelCard] = {}
    for listed in msgspec.json.decode(body, type=_Models).data[:MAX_MODELS]:
        card = {
            name: value for name in _Card.__struct_fields__ if (value := _read(getattr(listed, name))) is not _NOTHING
        }
        name = card.get("id")
        if isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable():
            cards[name] = card
    return cards


def _read(raw: msgspec.Raw) -> Any:
    if not 0 < len(bytes(raw)) <= MAX_FIELD_BYTES:
        return _NOTHING
    try:
        return _scalar.decode(raw)
    except msgspec.MsgspecError:
        return _NOTHING


class WorkerMonitor:
    """The watch over one member, until its task is cancelled."""

    def __init__(
        self,
        member: Member,
        fleet: Fleet,
        upstream: Upstream,
        probes: ProbesConfig,
        load: LoadConfig,
        clock: Callable[[], float],
        *,
        has_worker_key: bool = False,
    ) -> None:
        """``has_worker_key``: a key is sent to workers, which decides what their 401 means."""
        self._member = member
        self._fleet = fleet
        self._upstream = upstream
        self._probes = probes
        self._load = load
        self._has_worker_key = has_worker_key
        self._clock = clock
        self._models_due = 0.0
        self._is_load_bad = False
        self._errors: dict[str, str] = {}
        """By path, what is wrong with its last answer."""
        self._told: dict[tuple[str, str], float] = {}
        """When a path's error was logged last."""
        self.has_looked = asyncio.Event()
        """Set once the worker was probed and its load read, whatever came of it."""

    async def run(self) -> None:
        await self.probe()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe_forever())
            tasks.create_task(self._poll_forever())

    async def _probe_forever(self) -> None:
        while True:
            is_well = self._member.health.state is WorkerState.UP and self._member.models
            await asyncio.sleep(self._probes.interval_s if is_well else ILL_INTERVAL_S)
            await self.probe()

    async def _poll_forever(self) -> None:
        while True:
            await self.poll()
            self.has_looked.set()
            wait_s = self._load.poll_interval_s
            if self._member.state is WorkerState.ASLEEP:
                wait_s = min(wait_s, WAKE_WAIT_S)
            await asyncio.sleep(max(wait_s, BAD_LOAD_WAIT_S) if self._is_load_bad else wait_s)

    async def probe(self) -> None:
        """Once: health, and the models if it is time for them."""
        health = self._member.health
        reply = await self._get("/health", self._probes.timeout_s, MAX_PROBE_BYTES)
        now = self._clock()
        if health.since is None:
            health.since = now
        if reply is not None:
            self._clear("/health")
            if not self._member.models or self._member.is_list_old or now >= self._models_due:
                await self._read_models(now)
            changed = bool(self._member.models) and health.on_probe_answered(now)
        else:
            changed = health.on_probe_failed(now)
            self._member.is_list_old = True
            if health.failed_probes >= health.rules.failures:
                self._upstream.abort_unresponsive(self._member.address)
        if changed:
            self._fleet.on_health_changed(self._member)
        elif self._member.state is WorkerState.EJECTED and reply is not None:
            self._fleet.on_alive(self._member)

    async def poll(self) -> None:
        """Once: the load. A worker that does not say is not ill; its last figures are believed until they are stale."""
        member = self._member
        asked, asked_at = self._fleet.own_load(member), self._clock()
        report = await self._read_load()
        now = self._clock()
        if report is None:
            self._fleet.expire_load(member, now)
        else:
            member.work.on_poll(report, asked_at, now)
            if self._fleet.on_load(member, report, asked, now):
                log.info("worker restarted: its cache is empty", extra={"worker": member.name})
        if member.state is WorkerState.ASLEEP:
            self._upstream.abort_unresponsive(member.address)  # what was sent in the moment before it was seen

    async def _read_load(self) -> LoadReport | None:
        if self._member.state is WorkerState.EJECTED and not self._member.leases:
            return None  # requests there may be waited for as long as it shows that it is at work
        self._is_load_bad = False
        reply = await self._get("/metrics", LOAD_TIMEOUT_S, MAX_METRICS_BYTES)
        if reply is None:
            return None
        try:
            report = await _parse_in_steps(reply.body)
        except BadLoad as error:
            self._count_bad("/metrics", str(error))
            return None
        self._clear("/metrics")
        return report

    async def look_for_models(self) -> None:
        """Read the list of models now, of a worker that is healthy."""
        if self._member.health.state is WorkerState.UP:
            await self._read_models(self._clock())

    async def _read_models(self, now: float) -> None:
        reply = await self._get("/v1/models", self._probes.timeout_s, MAX_PROBE_BYTES)
        if reply is None:
            return
        try:
            models = read_models(reply.body)
        except (msgspec.MsgspecError, RecursionError):
            self._count_bad("/v1/models", "the answer is no list of models: is this a vLLM server?")
            return
        if models:
            self._clear("/v1/models")
        else:
            self._note("/v1/models", "the list of models is empty")
        self._models_due = now + MODELS_INTERVAL_S
        self._fleet.set_models(self._member, models)

    async def _get(self, path: str, timeout_s: float, max_bytes: int) -> Reply | None:
        """An answer of status 200; None, and its error is noted, where there is none."""
        try:
            async with asyncio.timeout(timeout_s):
                with self._upstream.exchange(self._member.address) as exchange:
                    reply = await exchange.get(path, max_bytes)
        except ReplyTooLarge:
            self._count_bad(path, f"the answer is larger than {max_bytes} bytes")
            return None
        except AttemptFailed as error:
            self._note(path, self._failure(error))
            return None
        except TimeoutError:
            self._note(path, f"no answer within {timeout_s:g} s")
            return None
        if reply.status != 200:
            self._note(path, self._refusal(reply.status))
            return None
        return reply

    def _failure(self, error: AttemptFailed) -> str:
        """A server of TLS closes a connection on which plain HTTP comes; so may one that is ill, once it was well."""
        member = self._member
        is_refused = isinstance(error, WorkerDied) and not isinstance(error, CannotConnect)
        if is_refused and member.address.scheme == "http" and member.health.state is WorkerState.STARTING:
            return f"{error}: should its URL begin with https://?"
        return str(error)

    def _refusal(self, status: int) -> str:
        if status in (401, 403):
            has_key = self._has_worker_key
            return f"HTTP status {status}: " + (
                "the worker refuses the key of fleet.worker_key"
                if has_key
                else "the worker asks for a key: set fleet.worker_key"
            )
        return f"HTTP status {status}" + (": is this a vLLM server?" if status in (404, 405) else "")

    def _count_bad(self, path: str, error: str) -> None:
        """The answer came and cannot be used. The error is never in the worker's words, of which there may be megabytes."""
        self._is_load_bad |= path == "/metrics"
        self._upstream.breaches["probe"] += 1
        self._note(path, error)

    def _note(self, path: str, error: str) -> None:
        """The error is logged at once, and once a minute while it lasts. While a worker is not healthy, nothing is said of its
        metrics."""
        error = printable(error[:MAX_ERROR_CHARS])
        self._errors[path] = error
        self._show_error()
        now = self._clock()
        self._told = {told: at for told, at in self._told.items() if now - at < TOLD_EVERY_S}
        is_implied = path == "/metrics" and "/health" in self._errors
        if is_implied or (path, error) in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told[path, error] = now
        member = self._member
        fields = {"worker": member.name, "url": member.address.url, "path": path, "error": error}
        log.warning("a probe of a worker failed", extra=fields)

    def _clear(self, path: str) -> None:
        if self._errors.pop(path, None) is not None:
            self._show_error()

    def _show_error(self) -> None:
        """Of several, the one that the others follow from."""
        path = next((path for path in _PROBED if path in self._errors), None)
        self._member.last_error = None if path is None else f"GET {path}: {self._errors[path]}"


_PROBED = ("/health", "/v1/models", "/metrics")


async def _parse_in_steps(text: bytes) -> LoadReport:
    """Others are served in between. Raises BadLoad."""
    reader = LoadReader()
    for number, lines in enumerate(slices(text)):
        if number:
            await asyncio.sleep(0)
        reader.feed(lines)
    return reader.report()

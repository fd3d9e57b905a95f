"""Checks one worker at intervals: its health, its models, its load. Requests never wait for this.

Replies are bounded in size, little of them is kept, and they are parsed in steps of a few milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from router.config.workers import LoadConfig, ProbesConfig
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import WorkerState
from router.core.fleet.load import LoadReport
from router.core.fleet.member import Member
from router.core.printable import printable
from router.core.request.attempt import AttemptFailed, CannotConnect, ReplyTooLarge, WorkerDied
from router.core.request.reply import Reply
from router.upstream.exchange import Upstream
from router.upstream.load import BadLoad, LoadReader, slices
from router.upstream.model_list import read_models

log = logging.getLogger("warmroute.fleet")

MAX_PROBE_BYTES, MAX_METRICS_BYTES = 1 << 20, 4 << 20
"""Largest replies to probes. A worker of many engines writes some hundred KB of metrics."""

LOG_AGAIN_S, MAX_LOGGED = 60.0, 16
"""A probe's error that lasts is logged again after this time, and this many different errors of one worker within it."""

MAX_ERROR_CHARS = 200

ILL_INTERVAL_S = 0.25
"""Between two probes of a worker that is not up."""

MODELS_INTERVAL_S = 5.0
"""Between two reads of a worker's /v1/models."""

LOAD_TIMEOUT_S = 2.0
"""For a worker's /metrics."""

WAKE_WAIT_S = 1.0
"""Longest time between two polls of a sleeping worker. A poll notices that it wakes."""

BAD_LOAD_WAIT_S = 5.0
"""Pause after metrics that were too large or invalid, since parsing them delays requests."""


class WorkerMonitor:
    """Monitors one member until its task is cancelled."""

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
        """The error of each path's last reply."""
        self._logged: dict[tuple[str, str], float] = {}
        """When each path's error was logged last."""
        self.has_checked = asyncio.Event()
        """Set after the first probe and the first poll, whatever their results."""

    def __repr__(self) -> str:
        return f"<WorkerMonitor {self._member.name} {self._member.state.value} errors={self._errors}>"

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
            self.has_checked.set()
            wait_s = self._load.poll_interval_s
            if self._member.state is WorkerState.ASLEEP:
                wait_s = min(wait_s, WAKE_WAIT_S)
            await asyncio.sleep(max(wait_s, BAD_LOAD_WAIT_S) if self._is_load_bad else wait_s)

    async def probe(self) -> None:
        """Probe the worker's health once, and its models if they are due."""
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
        """Read the worker's load once. A worker that reports none is not ill, and its last figures count until they are
        stale."""
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
            self._upstream.abort_unresponsive(
                member.address
            )  # requests that were sent just before the sleep was noticed

    async def _read_load(self) -> LoadReport | None:
        if self._member.state is WorkerState.EJECTED and not self._member.leases:
            return None  # its figures matter only while requests wait for it
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

    async def refresh_models(self) -> None:
        """Read the list of models now, if the worker is healthy."""
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
        """The reply if its status is 200. None otherwise; the error is recorded."""
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
        """The error's text, with a hint if the worker may expect TLS: such a server closes a connection on which plain HTTP
        comes. A worker that was healthy before is ill instead."""
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
        """Record a reply that cannot be used. ``error`` never quotes the worker, whose text may be megabytes."""
        self._is_load_bad |= path == "/metrics"
        self._upstream.rejected_replies["probe"] += 1
        self._note(path, error)

    def _note(self, path: str, error: str) -> None:
        """Record the error, log it at once, and again once a minute while it lasts. Errors of the metrics are not logged while
        the worker is not healthy."""
        error = printable(error[:MAX_ERROR_CHARS])
        self._errors[path] = error
        self._show_error()
        now = self._clock()
        self._logged = {error: at for error, at in self._logged.items() if now - at < LOG_AGAIN_S}
        is_implied = path == "/metrics" and "/health" in self._errors
        if is_implied or (path, error) in self._logged or len(self._logged) >= MAX_LOGGED:
            return
        self._logged[path, error] = now
        member = self._member
        fields = {"worker": member.name, "url": member.address.url, "path": path, "error": error}
        log.warning("a probe of a worker failed", extra=fields)

    def _clear(self, path: str) -> None:
        if self._errors.pop(path, None) is not None:
            self._show_error()

    def _show_error(self) -> None:
        """Show the error that causes the others, if there are several."""
        path = next((path for path in _PROBED if path in self._errors), None)
        self._member.last_error = None if path is None else f"GET {path}: {self._errors[path]}"


_PROBED = ("/health", "/v1/models", "/metrics")


async def _parse_in_steps(text: bytes) -> LoadReport:
    """Parse the metrics and let requests run between the slices. Raises BadLoad."""
    reader = LoadReader()
    for number, lines in enumerate(slices(text)):
        if number:
            await asyncio.sleep(0)
        reader.feed(lines)
    return reader.report()

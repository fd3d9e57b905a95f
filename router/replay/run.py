"""The replay as an open loop: sends each request at its time in the trace. Must never wait for the requests before it."""

import asyncio
import gc
import random
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from router.replay.client import Client
from router.replay.fleet import Informant
from router.replay.prompt import MIN_BLOCK_TOKENS, PromptWriter, session_of
from router.replay.report import ReplayReport, Sending, make_report
from router.replay.trace import TraceRow, read_trace

_CHAT = "/v1/chat/completions"

Progress = Callable[[int, int], None]
"""Called with the number of ended requests and the number of all requests."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Settings of a replay. Raises ValueError with key and bound if a value is out of bounds.

    urls: routers; each request goes to one of them, drawn with `seed`. speed: trace seconds per second of the
    workers' time. time_scale: seconds of the workers' time per wall second (1 for real workers). limit: number of rows
    from the trace's start; None: all. model: None takes the first model that the router lists. block_tokens: tokens of
    one block id of the trace. admin_url: the router's admin port, which lists the workers if worker_urls is empty;
    without both the hit ratio is unknown. api_key: a Bearer token for the routers. max_request_s: wall time after which
    a request has failed.
    """

    trace: Path
    urls: tuple[str, ...] = ("http://127.0.0.1:8080",)
    speed: float = 1.0
    time_scale: float = 1.0
    limit: int | None = None
    model: str | None = None
    block_tokens: int = 512
    worker_urls: tuple[str, ...] = ()
    admin_url: str | None = None
    api_key: str | None = None
    seed: int = 0
    max_request_s: float = 600.0

    def __post_init__(self) -> None:
        for key in ("speed", "time_scale", "max_request_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be above 0, not {getattr(self, key)!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, not {self.limit!r}")
        if self.block_tokens < MIN_BLOCK_TOKENS:
            raise ValueError(f"block_tokens must be at least {MIN_BLOCK_TOKENS}, not {self.block_tokens!r}")
        if not self.urls:
            raise ValueError("urls must have at least one")

    def as_dict(self) -> dict[str, Any]:
        """All settings in JSON types, without the API key."""
        return {**asdict(self), "trace": str(self.trace), "api_key": None}


async def replay(settings: ReplaySettings, on_progress: Progress | None = None) -> ReplayReport:
    """Send the trace and wait for every reply. Raises ReplayError if the trace or the fleet's counters cannot be read."""
    rows = read_trace(settings.trace, settings.limit)
    gc.freeze()  # a full collection that walks the trace would hold up the sending
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    clients = [Client(url, _CHAT, headers) for url in settings.urls]
    _raise_file_limit()
    async with aiohttp.ClientSession() as session:
        informant = Informant(session)
        model = settings.model or await informant.first_model(settings.urls[0], headers)
        workers = settings.worker_urls
        if not workers and settings.admin_url:
            workers = await informant.worker_urls(settings.admin_url)
        before = await informant.counters(workers)
        started, started_cpu = time.monotonic(), time.process_time()
        try:
            sendings = await _send_all(settings, rows, clients, PromptWriter(model, settings.block_tokens), on_progress)
        finally:
            for client in clients:
                client.close()
        wall_s, cpu_wall_s = time.monotonic() - started, time.process_time() - started_cpu
        after = await informant.counters(workers)
    return make_report(
        sendings,
        settings={**settings.as_dict(), "model": model},
        time_scale=settings.time_scale,
        counters={url: after[url].since(before[url]) for url in workers},
        wall_s=wall_s,
        cpu_wall_s=cpu_wall_s,
    )


async def _send_all(
    settings: ReplaySettings,
    rows: Sequence[TraceRow],
    clients: Sequence[Client],
    writer: PromptWriter,
    on_progress: Progress | None,
) -> list[Sending]:
    draw = random.Random(settings.seed).choice  # noqa: S311 - a load balancer's dice
    wall_per_ms = 1 / (1000 * settings.speed * settings.time_scale)
    begins = time.monotonic()
    sendings: list[Sending] = []

    async def send(client: Client, due_at: float, session: str, body: bytes) -> None:
        outcome = await client.post(session, body, settings.max_request_s)
        sendings.append(Sending(due_at, outcome))
        if on_progress is not None:
            on_progress(len(sendings), len(rows))

    async with asyncio.TaskGroup() as group:
        for number, row in enumerate(rows):
            body, session = writer.body(row, number), session_of(row, number)
            due_at = begins + (row.timestamp - rows[0].timestamp) * wall_per_ms
            if (remaining := due_at - time.monotonic()) > 0:
                await asyncio.sleep(remaining)
            group.create_task(send(draw(clients), due_at, session, body))
            if number % 8 == 7:
                await asyncio.sleep(0)  # a burst must not keep the replies unread
    return sendings


def _raise_file_limit() -> None:
    """Allow more open files: with an overloaded fleet an open loop has thousands of requests in flight."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

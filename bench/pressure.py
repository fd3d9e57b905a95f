"""A router under attack: its memory and limits, while another tenant continues to send requests.

Router, workers and hostile clients are separate processes, so the measurement covers the router alone. Two tenants have
keys: ``hostile`` has HOSTILE_KEYS of them, the other tenant has one.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import aiohttp
import psutil

from bench.verdict import ServedRouter, percentile, served

HOSTILE_KEYS = tuple(f"wr-hostile-{number:02}-0123456789abcdef" for number in range(16))
OTHER_KEY = "wr-other-0123456789abcdef01234567"
TOKEN = "an-admin-token-of-32-bytes-length"
SALT = "a-salt-secret-of-32-bytes-length"
ASK_TIMEOUT_S = 30.0

_SAMPLE = re.compile(r"^warmroute_([a-z_]+)(?:\{([^}]*)\})? ([-+.e\d]+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


def keys_file_text() -> str:
    keys = [*(("hostile", key) for key in HOSTILE_KEYS), ("other", OTHER_KEY)]
    return "\n".join(
        ["[tenants.hostile]\nmax_in_flight = 0\n\n[tenants.other]\n"]
        + [
            f'[[keys]]\nid = "{tenant}-{number}"\ntenant = "{tenant}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'
            for number, (tenant, key) in enumerate(keys)
        ]
    )


class Metrics:
    """One reading of all metrics."""

    def __init__(self, exposition: str) -> None:
        self._samples = [
            (name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _SAMPLE.findall(exposition)
        ]

    def sum_of(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels."""
        return sum(value for each, has, value in self._samples if each == name and labels.items() <= has.items())


@dataclass(slots=True)
class Asked:
    """The results of the other tenant's requests, and the seconds of each from the time when it was due."""

    times_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def ms(self, share: float) -> float:
        return round(percentile(self.times_s, share) * 1e3, 1) if self.times_s else 0.0


class Router:
    """A running router, seen by its operator and its other tenant over connections from before the attack."""

    def __init__(self, router: ServedRouter, operator: aiohttp.ClientSession, other: aiohttp.ClientSession) -> None:
        self.url, self.admin_url = router.url, router.admin_url
        self._process = psutil.Process(router.process.pid)
        self._operator, self._other = operator, other

    async def metrics(self) -> Metrics:
        async with self._operator.get(f"{self.admin_url}/metrics") as answer:
            return Metrics(await answer.text())

    def memory_bytes(self) -> int:
        """Resident memory of the router process."""
        return int(self._process.memory_info().rss)

    def helpers_bytes(self) -> int:
        """Resident memory of the processes that parse costly bodies."""
        total = 0
        for child in self._process.children(recursive=True):
            with suppress(psutil.Error):
                total += int(child.memory_info().rss)
        return total

    async def ask(self, asked: Asked, began_at: float) -> None:
        body = {"model": "well", "messages": [{"role": "user", "content": "hello"}]}
        try:
            async with self._other.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                text = await answer.text()
                if answer.status != 200:
                    asked.errors.append(f"{answer.status} {text[:200]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            asked.errors.append(repr(error))
        asked.times_s.append(time.monotonic() - began_at)

    async def is_alive(self) -> bool:
        async with self._other.get(f"{self.url}/health") as answer:
            return answer.status == 200

    @asynccontextmanager
    async def asked_on(self, rate: float) -> AsyncIterator[Asked]:
        """Sends ``rate`` requests a second inside the block. The time of each begins when it is due."""
        asked, is_over = Asked(), asyncio.Event()

        async def ask_on() -> None:
            due = time.monotonic()
            while not is_over.is_set():
                await asyncio.sleep(due - time.monotonic())
                await self.ask(asked, due)
                due += 1 / rate

        asking = asyncio.create_task(ask_on())
        try:
            yield asked
        finally:
            is_over.set()
            await asking


@asynccontextmanager
async def router_before(
    workers: Sequence[str], settings: Mapping[str, str], served_workers: int | None = None
) -> AsyncIterator[Router]:
    """A router before some workers, which serves a number of models or all of them.

    ``settings``: for example ``{"limits.max_connections": "10"}``.
    """
    environment = {f"WARMROUTE_{name.upper().replace('.', '__')}": value for name, value in settings.items()}
    named = [f"--worker={worker}" for worker in workers]
    command = (sys.executable, "-m", "router", "serve", "--port", "0", "--admin-port", "0", *named)
    async with AsyncExitStack() as stack:
        keys_file = Path(stack.enter_context(TemporaryDirectory())) / "keys.toml"
        keys_file.write_text(keys_file_text())
        environment |= {"WARMROUTE_AUTH__KEYS_FILE": str(keys_file), "WARMROUTE_AUTH__SALT_SECRET": SALT}
        router = await stack.enter_async_context(served([], environment, command))
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        operator = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {TOKEN}"})
        )
        other = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {OTHER_KEY}"})
        )
        found = Router(router, operator, other)
        await until(lambda: _serves(other, router.url, served_workers or len(workers)))
        yield found


async def _serves(session: aiohttp.ClientSession, url: str, workers: int) -> bool:
    async with session.get(f"{url}/v1/models") as answer:
        return answer.status == 200 and len((await answer.json())["data"]) >= workers


async def until(is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Calls ``is_so`` until it is true; it may be asynchronous. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = is_so()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.1)


class Child:
    """``python -m MODULE …``, killed at the end of the block."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._arguments, stdout=PIPE, stderr=DEVNULL
        )
        return self

    async def url(self) -> str:
        """The first line that the process prints."""
        assert self._process is not None
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def shaped_workers() -> AsyncIterator[list[str]]:
    """The URLs of two workers: the other tenant's, and one for all other models.

    Two workers are needed so that a worker's own load slows no tenant.
    """
    async with (
        Child("bench.shaped_worker", "well") as well,
        Child("bench.shaped_worker", "large", "held", "stuck", "endless", "long") as others,
    ):
        yield [await well.url(), await others.url()]


def hostile_clients(kind: str, router: Router, count: int, *, is_for_admin_port: bool) -> Child:
    url = router.admin_url if is_for_admin_port else router.url
    return Child("bench.hostile_clients", kind, url, str(count), *HOSTILE_KEYS)

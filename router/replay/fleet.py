"""What is asked beside the load: the model's name, who the workers are, and what their own counters say.

Hit ratios come from the workers alone: what a router believes of its fleet is not evidence about it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from router.replay.trace import ReplayError

_ASK_S = 10.0
_HITS, _QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
_REQUESTS = "vllm:request_success_total"
_SAMPLE = re.compile(r"^(vllm:\w+)(?:\{[^\n]*\})? ([-+.\deE]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Counters:
    """One worker's, since it started. hits, queries: tokens. requests: those it finished."""

    hits: float = 0.0
    queries: float = 0.0
    requests: float = 0.0

    def since(self, before: "Counters") -> "Counters":
        """What was added. A worker that restarted counts from 0, as Prometheus' rate() takes it."""
        if self.queries < before.queries:
            return self
        return Counters(self.hits - before.hits, self.queries - before.queries, self.requests - before.requests)


class Informant:
    """Asks over one session; every answer is waited for a bounded time. Raises ReplayError where none comes."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def first_model(self, url: str, headers: Mapping[str, str]) -> str:
        models = await self._json(f"{url.rstrip('/')}/v1/models", headers)
        try:
            return str(models["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ReplayError(f"{url}/v1/models names no model: give one with --model") from None

    async def worker_urls(self, admin_url: str) -> tuple[str, ...]:
        """The `workers` of the router's admin port."""
        answer = await self._json(f"{admin_url.rstrip('/')}/workers", {})
        try:
            return tuple(str(worker["url"]) for worker in answer["workers"])
        except (KeyError, TypeError):
            raise ReplayError(f"{admin_url}/workers lists no workers") from None

    async def counters(self, urls: Sequence[str]) -> dict[str, Counters]:
        return {url: read_counters(await self._text(f"{url.rstrip('/')}/metrics", {})) for url in urls}

    async def _json(self, url: str, headers: Mapping[str, str]) -> Any:
        try:
            return msgspec.json.decode(await self._text(url, headers))
        except msgspec.DecodeError:
            raise ReplayError(f"{url}: the answer is not JSON") from None

    async def _text(self, url: str, headers: Mapping[str, str]) -> str:
        timeout = aiohttp.ClientTimeout(total=_ASK_S)
        try:
            async with self._session.get(url, headers=headers, timeout=timeout) as answer:
                if answer.status != 200:
                    raise ReplayError(f"{url}: answered {answer.status}")
                return await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ReplayError(f"{url}: no answer ({type(error).__name__})") from None
        except ValueError:
            raise ReplayError(f"{url}: not a URL") from None


def read_counters(metrics: str) -> Counters:
    """Sums over whatever labels there are (one engine or several), from the Prometheus text format."""
    sums = {_HITS: 0.0, _QUERIES: 0.0, _REQUESTS: 0.0}
    for name, value in _SAMPLE.findall(metrics):
        if name in sums:
            sums[name] += float(value)
    return Counters(sums[_HITS], sums[_QUERIES], sums[_REQUESTS])

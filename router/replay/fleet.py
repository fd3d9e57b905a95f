"""Queries beside the load: the model's name, the workers' URLs, and the workers' counters.

Hit ratios come from the workers only, since a router's own estimate does not prove a hit.
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
    """One worker's counters since its start. hits, queries: tokens. requests: finished requests."""

    hits: float = 0.0
    queries: float = 0.0
    requests: float = 0.0

    def since(self, before: "Counters") -> "Counters":
        """The increase since `before`. A restarted worker counts from 0, as in Prometheus' rate()."""
        if self.queries < before.queries:
            return self
        return Counters(self.hits - before.hits, self.queries - before.queries, self.requests - before.requests)


class Informant:
    """Queries routers and workers over one HTTP session. Raises ReplayError if no answer comes within 10 s."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def first_model(self, url: str, headers: Mapping[str, str]) -> str:
        models = await self._json(f"{url.rstrip('/')}/v1/models", headers)
        try:
            return str(models["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ReplayError(f"{url}/v1/models lists no model: name one with --model") from None

    async def worker_urls(self, admin_url: str) -> tuple[str, ...]:
        """The URLs of the workers that the router's admin port lists."""
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
    """The counters in the Prometheus text format, summed over all labels (one engine or several)."""
    sums = {_HITS: 0.0, _QUERIES: 0.0, _REQUESTS: 0.0}
    for name, value in _SAMPLE.findall(metrics):
        if name in sums:
            sums[name] += float(value)
    return Counters(sums[_HITS], sums[_QUERIES], sums[_REQUESTS])

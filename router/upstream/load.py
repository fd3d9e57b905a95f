"""Parses a worker's /metrics page into a LoadReport."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite

from router.core.fleet.load import LoadReport

_LINES = re.compile(
    rb"\n(process_start_time_seconds|vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc"
    rb"|prefix_cache_queries_total|prefix_cache_hits_total|prompt_tokens_by_source_total|cache_config_info|engine_sleep_state"
    rb"|prompt_tokens_total|generation_tokens_total))"
    rb"(\{[^\n]*\})? ([^ \n]{1,40})(?![^ \n])"
)
"""The only lines that are read of a worker's hundreds, since each worker is polled several times a second."""

_COMPUTED = b"vllm:prompt_tokens_by_source_total"
"""Only computed tokens count here, not those from a cache."""

_LOOKED_UP = b"vllm:prefix_cache_queries_total"

_SIZES = re.compile(rb'[{,](kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d{1,15})"')
"""Labels. Every quotation mark inside another label's value is escaped, so no value matches this."""


_AWAKE = re.compile(rb'[{,]sleep_state="awake"')

SLICE_BYTES = 128 << 10
"""Size of a slice, which takes 3 ms at worst. Most pages are smaller."""

MAX_FIGURES = 10_000
"""Most lines that count. A data-parallel engine has a dozen."""

MAX_FIGURE = 1e15
"""Largest valid figure. Counters of tokens stay below it for centuries, and a larger one would spoil each sum."""


class BadLoad(Exception):
    """The text is not a vLLM worker's metrics page."""


def slices(text: bytes) -> Iterator[bytes]:
    """Split the text into slices of whole lines. Raises BadLoad."""
    at = 0
    while len(text) - at > SLICE_BYTES:
        end = text.rfind(b"\n", at, at + SLICE_BYTES) + 1
        if end <= at:
            raise BadLoad("a line is too long")
        yield text[at:end]
        at = end
    yield text[at:]


class LoadReader:
    """Reads slices of whole lines. Adds up the data-parallel engines of a worker."""

    def __init__(self) -> None:
        self._sums: dict[bytes, float] = {}
        self._looked_up_tokens: dict[bytes, float] = {}
        self._cache_tokens = 0
        self._is_asleep = False
        self._figures = 0

    def feed(self, lines: bytes) -> None:
        """Raises BadLoad."""
        sums = self._sums
        found = _LINES.findall(b"\n" + lines)
        self._figures += len(found)
        if self._figures > MAX_FIGURES:
            raise BadLoad("too many figures")
        try:
            for name, labels, value in found:
                if name == b"vllm:cache_config_info":
                    self._cache_tokens += _cache_tokens(labels)
                elif name == b"vllm:engine_sleep_state":
                    self._is_asleep |= float(value) > 0 and not _AWAKE.search(labels)
                elif name != _COMPUTED or b'source="local_compute"' in labels:
                    sums[name] = sums.get(name, 0.0) + float(value)
                    if name == _LOOKED_UP:
                        self._looked_up_tokens[labels] = float(value)
        except ValueError:
            raise BadLoad("a figure is no number") from None

    def report(self) -> LoadReport:
        """Raises BadLoad."""
        sums = self._sums
        if not all(isfinite(figure) and abs(figure) <= MAX_FIGURE for figure in sums.values()):
            raise BadLoad("a figure is out of range")
        running, waiting = (int(sums.get(b"vllm:num_requests_" + kind, 0)) for kind in (b"running", b"waiting"))
        return LoadReport(
            running=running,
            waiting=waiting,
            kv_cache_usage=sums.get(b"vllm:kv_cache_usage_perc", 0.0),
            prefilling_tokens=_prefilling(sums),
            cache_tokens=min(self._cache_tokens, int(MAX_FIGURE)) or None,
            process_start_time=sums.get(b"process_start_time_seconds"),
            tokens=_computed(sums),
            is_asleep=self._is_asleep,
            looked_up_tokens=self._looked_up_tokens,
        )


def parse_load(text: bytes) -> LoadReport:
    """Parse a whole page in one step. Raises BadLoad."""
    reader = LoadReader()
    for lines in slices(text):
        reader.feed(lines)
    return reader.report()


def _prefilling(sums: dict[bytes, float]) -> float | None:
    queries, hits = sums.get(_LOOKED_UP), sums.get(b"vllm:prefix_cache_hits_total")
    computed = sums.get(_COMPUTED)
    if queries is None or hits is None or computed is None:
        return None
    return max(0.0, queries - hits - computed)


def _computed(sums: dict[bytes, float]) -> float | None:
    counts = [sums[name] for name in (b"vllm:prompt_tokens_total", b"vllm:generation_tokens_total") if name in sums]
    return sum(counts) if counts else None


def _cache_tokens(labels: bytes) -> int:
    """Size of one engine's cache in tokens."""
    sizes = {name: int(value) for name, value in _SIZES.findall(labels)}
    return sizes.get(b"kv_cache_size_tokens") or sizes.get(b"num_gpu_blocks", 0) * sizes.get(b"block_size", 0)

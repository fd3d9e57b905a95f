"""A worker's /metrics → LoadReport."""

from __future__ import annotations

import re
from math import isfinite

from router.core.load import LoadReport

_LINES = re.compile(
    rb"\n(vllm:num_requests_running|vllm:num_requests_waiting|vllm:kv_cache_usage_perc|process_start_time_seconds"
    rb"|vllm:prefix_cache_queries_total|vllm:prefix_cache_hits_total)(?:\{[^\n]*\})? ([^ \n]+)"
)
_COMPUTED = re.compile(rb'\nvllm:prompt_tokens_by_source_total\{(?=[^\n]*source="local_compute")[^\n]*\} ([^ \n]+)')
_CACHE_LINES = re.compile(rb"\n(vllm:cache_config_info\{[^\n]*)")
"""Only these of a worker's hundreds of lines are read, since it is asked several times a second."""

_SIZES = re.compile(rb'[{,](kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d{1,15})"')
"""Labels; inside another label's value every quotation mark is escaped, so none looks like this."""


class BadLoad(Exception):
    """The text is not what a worker exports."""


def parse_load(text: bytes) -> LoadReport:
    """Data-parallel engines of one worker are added up. Raises BadLoad."""
    text = b"\n" + text
    sums: dict[bytes, float] = {}
    try:
        for name, value in _LINES.findall(text):
            sums[name] = sums.get(name, 0.0) + float(value)
        running, waiting = (int(sums.get(b"vllm:num_requests_" + kind, 0)) for kind in (b"running", b"waiting"))
        computed = [float(value) for value in _COMPUTED.findall(text)]
        cache_tokens = sum(map(_cache_tokens, _CACHE_LINES.findall(text)))
        if not all(map(isfinite, sums.values())):
            raise ValueError("a figure is not finite")  # noqa: TRY301
    except (ValueError, OverflowError) as error:
        raise BadLoad(str(error)) from None
    return LoadReport(
        running=running,
        waiting=waiting,
        kv_cache_usage=sums.get(b"vllm:kv_cache_usage_perc", 0.0),
        prefilling_tokens=_prefilling(sums, computed),
        cache_tokens=cache_tokens or None,
        process_start_time=sums.get(b"process_start_time_seconds"),
    )


def _prefilling(sums: dict[bytes, float], computed: list[float]) -> float | None:
    queries, hits = sums.get(b"vllm:prefix_cache_queries_total"), sums.get(b"vllm:prefix_cache_hits_total")
    if queries is None or hits is None or not computed:
        return None
    return max(0.0, queries - hits - sum(computed))


def _cache_tokens(line: bytes) -> int:
    """Of one engine."""
    sizes = {name: int(value) for name, value in _SIZES.findall(line)}
    return sizes.get(b"kv_cache_size_tokens") or sizes.get(b"num_gpu_blocks", 0) * sizes.get(b"block_size", 0)

"""A worker's /metrics → LoadReport."""

from __future__ import annotations

import re
from math import isfinite

from router.core.load import LoadReport

_LINES = re.compile(
    rb"\n(process_start_time_seconds|vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc"
    rb"|prefix_cache_queries_total|prefix_cache_hits_total|prompt_tokens_by_source_total|cache_config_info))"
    rb"(\{[^\n]*\})? ([^ \n]+)"
)
"""Only these of a worker's hundreds of lines are read, since it is asked several times a second."""

_COMPUTED = b"vllm:prompt_tokens_by_source_total"
"""Of which only what was computed counts, and not what came from a cache."""

_SIZES = re.compile(rb'[{,](kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d{1,15})"')
"""Labels; inside another label's value every quotation mark is escaped, so none looks like this."""


class BadLoad(Exception):
    """The text is not what a worker exports."""


def parse_load(text: bytes) -> LoadReport:
    """Data-parallel engines of one worker are added up. Raises BadLoad."""
    sums: dict[bytes, float] = {}
    cache_tokens = 0
    try:
        for name, labels, value in _LINES.findall(b"\n" + text):
            if name == b"vllm:cache_config_info":
                cache_tokens += _cache_tokens(labels)
            elif name != _COMPUTED or b'source="local_compute"' in labels:
                sums[name] = sums.get(name, 0.0) + float(value)
        running, waiting = (int(sums.get(b"vllm:num_requests_" + kind, 0)) for kind in (b"running", b"waiting"))
        if not all(map(isfinite, sums.values())):
            raise ValueError("a figure is not finite")  # noqa: TRY301
    except (ValueError, OverflowError) as error:
        raise BadLoad(str(error)) from None
    return LoadReport(
        running=running,
        waiting=waiting,
        kv_cache_usage=sums.get(b"vllm:kv_cache_usage_perc", 0.0),
        prefilling_tokens=_prefilling(sums),
        cache_tokens=cache_tokens or None,
        process_start_time=sums.get(b"process_start_time_seconds"),
    )


def _prefilling(sums: dict[bytes, float]) -> float | None:
    queries, hits = sums.get(b"vllm:prefix_cache_queries_total"), sums.get(b"vllm:prefix_cache_hits_total")
    computed = sums.get(_COMPUTED)
    if queries is None or hits is None or computed is None:
        return None
    return max(0.0, queries - hits - computed)


def _cache_tokens(labels: bytes) -> int:
    """Of one engine."""
    sizes = {name: int(value) for name, value in _SIZES.findall(labels)}
    return sizes.get(b"kv_cache_size_tokens") or sizes.get(b"num_gpu_blocks", 0) * sizes.get(b"block_size", 0)

"""A worker's /metrics → LoadReport."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from router.core.load import LoadReport

_LINES = re.compile(
    rb"(?m)^(?:vllm:num_requests_running|vllm:num_requests_waiting|vllm:kv_cache_usage_perc|vllm:cache_config_info"
    rb"|process_start_time_seconds)[ {].*$"
)
"""Only these of a worker's hundreds of lines are parsed: it is asked several times a second."""


class BadLoad(Exception):
    """The text is not what a worker exports."""


def parse_load(text: bytes) -> LoadReport:
    """Data-parallel engines of one worker are added up. Raises BadLoad."""
    sums: dict[str, float] = {}
    cache_tokens: int | None = None
    try:
        lines = b"\n".join(_LINES.findall(text)).decode() + "\n"
        for family in text_string_to_metric_families(lines):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                if sample.name == "vllm:cache_config_info":
                    cache_tokens = (cache_tokens or 0) + _cache_tokens(sample.labels)
    except (ValueError, KeyError) as error:
        raise BadLoad(str(error)) from None
    return LoadReport(
        running=int(sums.get("vllm:num_requests_running", 0)),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        kv_cache_usage=sums.get("vllm:kv_cache_usage_perc", 0.0),
        cache_tokens=cache_tokens or None,
        process_start_time=sums.get("process_start_time_seconds"),
    )


def _cache_tokens(labels: dict[str, str]) -> int:
    size = labels.get("kv_cache_size_tokens", "")
    if size.isdigit():
        return int(size)
    blocks, block = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    return int(blocks) * int(block) if blocks.isdigit() and block.isdigit() else 0

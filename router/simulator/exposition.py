"""`/metrics` with vLLM's names, labels and units, as far as a router or a dashboard reads them.

A router may poll every few milliseconds of wall time, so all constant text is prepared once. Times are virtual seconds.
"""

from itertools import accumulate

from router.simulator.engine import Engine
from router.simulator.settings import SimulatorSettings
from router.simulator.stats import ITL_BOUNDS_S, LATENCY_BOUNDS_S, TTFT_BOUNDS_S, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}
_COUNTERS = {
    "prefix_cache_queries_total": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits_total": "Prefix cache hits, in terms of number of cached tokens.",
    "num_preemptions_total": "Cumulative number of preemptions from the engine.",
    "prompt_tokens_total": "Number of prefill tokens processed.",
    "prompt_tokens_cached_total": "Number of prompt tokens found in a cache.",
    "generation_tokens_total": "Number of generation tokens processed.",
}
_HISTOGRAMS = {
    "time_to_first_token_seconds": TTFT_BOUNDS_S,
    "inter_token_latency_seconds": ITL_BOUNDS_S,
    "e2e_request_latency_seconds": LATENCY_BOUNDS_S,
    "request_queue_time_seconds": LATENCY_BOUNDS_S,
    "request_prefill_time_seconds": LATENCY_BOUNDS_S,
}


def _family(name: str, kind: str, meaning: str) -> str:
    return f"# HELP vllm:{name} {meaning}\n# TYPE vllm:{name} {kind}\n"


class Exposition:
    """The `/metrics` page of one worker. process_start_s: Unix seconds of the wall clock."""

    def __init__(self, settings: SimulatorSettings, process_start_s: float) -> None:
        labels = f'engine="0",model_name="{settings.models[0]}"'
        kinds = [(name, "gauge", text) for name, text in _GAUGES.items()]
        kinds += [(name, "counter", text) for name, text in _COUNTERS.items()]
        self._values = [_family(name, kind, text) + f"vllm:{name}{{{labels}}} " for name, kind, text in kinds]
        self._success_head = _family("request_success_total", "counter", "Count of successfully processed requests.")
        self._success = {
            reason: f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} '
            for reason in ("stop", "length", "abort", "error")
        }
        self._computed = _family(
            "prompt_tokens_by_source_total", "counter", "Prompt tokens, by where they came from."
        ) + (f'vllm:prompt_tokens_by_source_total{{{labels},source="local_compute"}} ')
        self._reasons = _family("num_requests_waiting_by_reason", "gauge", "Number of waiting requests, by reason.") + (
            f'vllm:num_requests_waiting_by_reason{{{labels},reason="deferred"}} 0.0\n'
            f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} '
        )
        self._buckets = {
            name: (
                _family(name, "histogram", f"Histogram of {name.removesuffix('_seconds')} in seconds."),
                [f'vllm:{name}_bucket{{{labels},le="{bound}"}} ' for bound in (*bounds, "+Inf")],
                f"vllm:{name}_count{{{labels}}} ",
                f"vllm:{name}_sum{{{labels}}} ",
            )
            for name, bounds in _HISTOGRAMS.items()
        }
        self._constant = _cache_config(settings) + (
            "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.\n"
            f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {process_start_s}\n"
        )
        self._rendered: dict[str, tuple[int, str]] = {}

    def render(self, engine: Engine) -> bytes:
        """The page's text. The caller advances the engine to now first."""
        stats = engine.stats
        numbers = (
            engine.running,
            engine.waiting,
            engine.cache.held_blocks / engine.cache.blocks,
            stats.prefix_queries,
            stats.prefix_hits,
            0,
            stats.prompt_tokens,
            stats.prefix_hits,
            stats.generation_tokens,
        )
        lines = [f"{head}{float(number)}\n" for head, number in zip(self._values, numbers, strict=True)]
        lines.append(f"{self._computed}{float(stats.computed_prompt_tokens)}\n")
        lines.append(f"{self._reasons}{float(engine.waiting)}\n{self._success_head}")
        lines += [f"{head}{float(stats.finished[reason])}\n" for reason, head in self._success.items()]
        histograms = (stats.ttft_s, stats.itl_s, stats.e2e_s, stats.queue_s, stats.prefill_s)
        lines += [self._histogram(name, histogram) for name, histogram in zip(_HISTOGRAMS, histograms, strict=True)]
        lines.append(self._constant)
        return "".join(lines).encode()

    def _histogram(self, name: str, histogram: Histogram) -> str:
        """The lines of a histogram, reused until its count changes."""
        count = sum(histogram.counts)
        rendered = self._rendered.get(name)
        if rendered is None or rendered[0] != count:
            family, heads, count_head, sum_head = self._buckets[name]
            buckets = zip(heads, accumulate(histogram.counts), strict=True)
            lines = "".join([f"{head}{below}.0\n" for head, below in buckets])
            rendered = (count, f"{family}{lines}{count_head}{count}.0\n{sum_head}{histogram.total}\n")
            self._rendered[name] = rendered
        return rendered[1]


def _cache_config(settings: SimulatorSettings) -> str:
    tokens = settings.cache_blocks * settings.block_tokens
    labels = {
        "block_size": settings.block_tokens,
        "cache_dtype": "auto",
        "effective_attention_block_size": settings.block_tokens,
        "enable_prefix_caching": True,
        "engine": 0,
        "hash_block_size": None,
        "kv_cache_max_concurrency": tokens / settings.max_model_len,
        "kv_cache_size_tokens": tokens,
        "num_gpu_blocks": settings.cache_blocks,
        "prefix_caching_hash_algo": "xxh3",
    }
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    name = "cache_config_info"
    return _family(name, "gauge", "Information of the LLMEngine CacheConfig") + f"vllm:{name}{{{pairs}}} 1.0\n"

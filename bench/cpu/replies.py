"""What the bench's stand-in worker says: bytes made once, in the shapes and sizes that vLLM 0.32 sends.

Nothing here depends on a request except whether it streams, how many events it wants, and whether it asked for usage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

MODEL = "bench"
FINGERPRINT = "vllm-0.32.0-8df3729d"
USAGE = {
    "prompt_tokens": 512,
    "total_tokens": 612,
    "completion_tokens": 100,
    "prompt_tokens_details": {"cached_tokens": 480, "created_cache_tokens": 32},
}
LAST_CHUNK = b"0\r\n\r\n"

# Bucket bounds and names of vLLM's own histograms: a router that polls /metrics parses a page of the real size.
LATENCY_BOUNDS = (
    *("0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0"),
    *("7.5", "10.0", "20.0", "40.0", "80.0", "160.0", "640.0", "2560.0", "+Inf"),
)
TOKEN_BOUNDS = (
    *("1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "1000.0", "2000.0", "5000.0", "+Inf"),
)
LATENCIES = (
    "time_to_first_token",
    "inter_token_latency",
    "request_time_per_output_token",
    "e2e_request_latency",
    "request_queue_time",
    "request_inference_time",
    "request_prefill_time",
    "request_decode_time",
)
TOKENS = (
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_params_n",
    "request_params_max_tokens",
    "request_num_preemptions",
    "request_prefill_kv_computed_tokens",
    "iteration_tokens_total",
)
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS = (
    "prefix_cache_queries",
    "prefix_cache_hits",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
    "mm_cache_queries",
    "mm_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "estimated_flops_per_gpu",
    "estimated_read_bytes_per_gpu",
    "estimated_write_bytes_per_gpu",
)
HANDLERS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/models", "/health", "none")
REQUEST_BOUNDS = ("0.1", "0.5", "1.0", "+Inf")
FINE_BOUNDS = (*(str(step / 20) for step in range(1, 80)), "+Inf")


def answer(status: str, content_type: str, body: bytes) -> bytes:
    """A whole keep-alive answer with vLLM's headers."""
    head = (
        f"HTTP/1.1 {status}\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(body)}\r\n"
        f"content-type: {content_type}\r\nvary: Origin\r\nx-request-id: 97067ccb205a9c0982885893529a4244\r\n\r\n"
    )
    return head.encode() + body


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\n"
    b"x-request-id: 97067ccb205a9c0982885893529a4244\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(event: str) -> bytes:
    """One SSE event in its own HTTP chunk, as uvicorn sends it."""
    body = f"data: {event}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def _completion() -> bytes:
    message = {"role": "assistant", "content": "The cache was warm. " * 8, "refusal": None, "annotations": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    body = {
        "id": "chatcmpl-97067ccb205a9c09",
        "object": "chat.completion",
        "created": 1795348800,
        "model": MODEL,
        "choices": [choice],
        "system_fingerprint": FINGERPRINT,
        "usage": USAGE,
        "kv_transfer_params": None,
    }
    return answer("200 OK", "application/json", json.dumps(body, separators=(",", ":")).encode())


def _event(choices: list[dict[str, object]], **more: object) -> bytes:
    base = {"id": "chatcmpl-b2ea183da915b6b8", "object": "chat.completion.chunk", "created": 1795348800, "model": MODEL}
    return chunk(json.dumps(base | {"choices": choices} | more, separators=(",", ":")))


def _choice(delta: dict[str, str], finish_reason: str | None, **more: object) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason} | more]


COMPLETION = _completion()
FIRST_EVENT = _event(_choice({"role": "assistant", "content": ""}, None), prompt_token_ids=None, prompt_text=None)
CONTENT_EVENT = _event(_choice({"content": " token"}, None, token_ids=None))
_LAST = _choice({"content": " end"}, "stop", stop_reason=None, token_ids=None)
# What a router gets that asks for token ids; others are spared those bytes.
FIRST_EVENT_WITH_IDS = _event(
    _choice({"role": "assistant", "content": ""}, None), prompt_token_ids=list(range(10_000, 10_512)), prompt_text=None
)
CONTENT_EVENT_WITH_IDS = _event(_choice({"content": " token"}, None, token_ids=[10512]))
# The fingerprint stands in whatever event is the last with a body.
END = _event(_LAST, system_fingerprint=FINGERPRINT) + chunk("[DONE]") + LAST_CHUNK
END_WITH_USAGE = _event(_LAST) + _event([], usage=USAGE, system_fingerprint=FINGERPRINT) + chunk("[DONE]") + LAST_CHUNK
EXTRA_EVENTS = 3
"""Events of a stream besides its content events: role, finish_reason, [DONE] (and usage, where it was asked for)."""


def _histogram(name: str, bounds: tuple[str, ...], *label_sets: str) -> Iterator[str]:
    yield f"# HELP {name} Histogram of {name.replace('_', ' ')}."
    yield f"# TYPE {name} histogram"
    for labels in label_sets:
        yield from (f'{name}_bucket{{{labels},le="{bound}"}} 15.0' for bound in bounds)
        yield f"{name}_count{{{labels}}} 15.0"
        yield f"{name}_sum{{{labels}}} 1.2732744216918945"


def _metrics_page() -> bytes:
    labels = f'engine="0",model_name="{MODEL}"'
    lines = ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {time.time()}"]
    for name in GAUGES:
        lines += [f"# HELP vllm:{name} {name}.", f"# TYPE vllm:{name} gauge", f"vllm:{name}{{{labels}}} 0.0"]
    for name in COUNTERS:
        lines += [f"# HELP vllm:{name}_total {name}.", f"# TYPE vllm:{name}_total counter"]
        lines += [f"vllm:{name}_total{{{labels}}} 1024.0", f"# TYPE vllm:{name}_created gauge"]
        lines += [f"vllm:{name}_created{{{labels}}} 1.7953897727e+09"]
    lines += ["# TYPE vllm:cache_config_info gauge"]
    cache = f'block_size="16",cache_dtype="auto",enable_prefix_caching="True",num_gpu_blocks="32768",{labels}'
    lines += [f'vllm:cache_config_info{{{cache},kv_cache_size_tokens="524288"}} 1.0']
    for name in LATENCIES:
        lines += _histogram(f"vllm:{name}_seconds", LATENCY_BOUNDS, labels)
    for name in TOKENS:
        lines += _histogram(f"vllm:{name}", TOKEN_BOUNDS, labels)
    handlers = (f'handler="{handler}",method="POST"' for handler in HANDLERS)
    lines += _histogram("http_request_duration_seconds", REQUEST_BOUNDS, *handlers)
    lines += _histogram("http_request_duration_highr_seconds", FINE_BOUNDS, 'app="vllm"')
    return answer("200 OK", "text/plain; version=1.0.0; charset=utf-8", "\n".join([*lines, ""]).encode())


def _models() -> bytes:
    card = {"id": MODEL, "object": "model", "created": 1795348800, "owned_by": "vllm", "max_model_len": 131072}
    return answer("200 OK", "application/json", json.dumps({"object": "list", "data": [card]}).encode())


def _json(value: object) -> bytes:
    return answer("200 OK", "application/json", json.dumps(value).encode())


# What routers ask for besides inference; sglang-router asks for the last three.
PAGES = {
    b"/health": answer("200 OK", "text/plain", b""),
    b"/version": _json({"version": "0.32.0"}),
    b"/v1/models": _models(),
    b"/metrics": _metrics_page(),
    b"/get_server_info": _json({"model_path": MODEL, "served_model_name": MODEL}),
    b"/server_info": _json({"model_path": MODEL, "served_model_name": MODEL}),
    b"/get_model_info": _json({"model_path": MODEL, "is_generation": True}),
    b"/model_info": _json({"model_path": MODEL, "is_generation": True}),
}
NOT_FOUND = answer("404 Not Found", "application/json", b'{"detail":"Not Found"}')

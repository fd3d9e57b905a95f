"""What an admin port tells, made up."""

from __future__ import annotations

from typing import Any


def a_worker(name: str, **members: Any) -> dict[str, Any]:
    return {
        "name": name,
        "url": f"http://{name}:8000",
        "state": "up",
        "in_flight": 0,
        "queued_prefill_tokens": 0,
        "prefill_rate": 10_000.0,
        "index_blocks": 25,
        "max_blocks": 100,
        "prompt_tokens": 1000,
        "cached_tokens": 250,
        **members,
    }


def an_attempt(worker: str, failure: str = "", *, broke: bool = False) -> dict[str, Any]:
    return {"worker": worker, "failure": failure, "broke": broke}


def a_decision(**members: Any) -> dict[str, Any]:
    return {
        "request_id": "r-1",
        "route": "/v1/chat/completions",
        "model": "sim",
        "stream": True,
        "worker": "w-1",
        "first_choice": "w-1",
        "policy": "cache_aware",
        "reason": "cached",
        "status": 200,
        "outcome": "ok",
        "attempts": 1,
        "tried": [an_attempt("w-1")],
        "retries": [],
        "given_up": False,
        "resumptions": [],
        "queued_s": 0.0,
        "prompt_tokens": 1000,
        "predicted_cached_tokens": 960,
        "actual_cached_tokens": 976,
        "decide_s": 0.0004,
        "time_to_first_token_s": 0.0525,
        "duration_s": 1.25,
        **members,
    }


def a_snapshot(**members: Any) -> dict[str, Any]:
    return {
        "version": "1.2",
        "policy": "cache_aware",
        "workers": [a_worker("w-1")],
        "decisions": [a_decision()],
        "live_requests": 3,
        "queued": 2,
        "saved_prefill_s": 1234.5,
        "sessions": {"turns": 7, "cached": 1, "store_up": True, "waiting": 0},
        "history": [[0.0, 100.0, 0.0, 0.0], [10.0, 1100.0, 700.0, 800.0]],
        **members,
    }

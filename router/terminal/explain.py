"""What happened to one request, and why, in words; from what ``/decisions`` told. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.terminal.screen import printable

REASONS = {
    "cached": "it holds the most of the prompt",
    "ring": "the ring places prompts that begin so on it",
    "load": "it is less busy, which was worth more than what others hold of the prompt",
    "cold": "nobody holds any of the prompt, and it was expected to be soonest",
    "over_bound": "the ring's first had more than its share, and this is the next",
    "session": "its session was there last",
    "drawn": "the less busy of two that were drawn",
    "turn": "it was its turn",
    "lot": "it was drawn by lot",
}
"""By what a policy says of its first choice."""
RETRIES = {
    "connect": "could not be connected to",
    "died": "closed the connection before its first byte",
    "timeout": "said nothing for too long",
    "error": "answered with an error of its own",
    "busy": "said that it is busy",
}
_RESUMED = {
    "exact": "another went on behind the very tokens",
    "text": "another went on behind the text",
    "finished": "nothing was missing but the end",
    "unsafe": "it could not be continued rightly, and was ended with an error",
    "failed": "nobody could go on with it, and it was ended with an error",
}


def explain(decision: dict[str, Any]) -> str:
    """Lines, the last one ended."""
    return "".join(f"{printable(line)}\n" for line in _lines(decision))


def _lines(one: dict[str, Any]) -> Iterator[str]:
    yield f"{one['request_id']}: {one['route']}, model {one['model']}"
    yield f"  ended      {one['outcome']}, status {one['status']}, after {_seconds(one['duration_s'])}"
    if not one["worker"]:
        yield "  worker     none was reached"
    else:
        yield f"  worker     {one['worker']}{_choice(one)}"
    yield f"  prompt     {_prompt(one)}"
    yield f"  first token {_seconds(one['time_to_first_token_s'])}; of it {_waits(one)}"
    for at, cause in enumerate(one["retries"], 1):
        yield f"  attempt {at}  failed: the worker {RETRIES.get(cause, cause)}"
    for stop in one["resumptions"]:
        told = _RESUMED.get(stop["outcome"], stop["outcome"])
        yield f"  stream     broke ({stop['cause']}); {told}, {_seconds(stop['gap_s'])} later"
    if one["given_up"]:
        yield "  given up   workers died under it, one after another; it may be what kills them"


def _choice(one: dict[str, Any]) -> str:
    told = f"{one['policy']}'s first choice ({one['reason']}: {REASONS.get(one['reason'], 'see its policy')})"
    return f", behind {told}, which failed" if one["retries"] else f", {told}"


def _prompt(one: dict[str, Any]) -> str:
    if not one["prompt_tokens"]:
        return f"the worker did not say how long; {one['predicted_cached_tokens']:,} tokens were expected in its cache"
    found = one["actual_cached_tokens"]
    told = "it did not say how many were" if found is None else f"{found:,} were"
    return f"{one['prompt_tokens']:,} tokens; {one['predicted_cached_tokens']:,} expected in its cache, {told}"


def _waits(one: dict[str, Any]) -> str:
    return f"{_seconds(one['decide_s'])} until the decision, {_seconds(one['queued_s'])} of which in the queue"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"

"""What happened to one request, and why, in words; from what ``/decisions`` told. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.core.printable import printable

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
FAILURES = {
    "connect": "could not be connected to",
    "died": "closed the connection before its first byte",
    "timeout": "said nothing for too long",
    "error": "answered with an error of its own",
    "busy": "said that it is busy",
    "no_model": "does not serve the model any more",
    "left": "left the fleet",
    "unsafe": "could not go on with it rightly",
    "too_large": "answered with more than may be held",
    "overloaded": "answered with more than there was memory for",
}
"""Of an attempt, by its cause."""
BREAKS = {
    "died": "closed the connection within its stream",
    "timeout": "fell silent within its stream",
    "error": "said within its stream that it cannot go on",
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
    if not one["tried"]:
        why = "its client left" if one["outcome"] == "client_gone" else "refused"
        queued = f", after {_seconds(one['queued_s'])} in the queue" if one["queued_s"] else ""
        yield f"  worker     none: {why} before a worker was chosen{queued}"
        return
    yield f"  worker     {one['worker']}{_choice(one)}"
    yield f"  prompt     {_prompt(one)}"
    yield f"  {_answer(one)}; of it {_waits(one)}"
    yield from _attempts(one)
    if one["given_up"]:
        yield "  given up   workers died under it, one after another; it may be what kills them"


def _choice(one: dict[str, Any]) -> str:
    told = f"{one['policy']}'s first choice"
    why = f"({one['reason']}: {REASONS.get(one['reason'], 'see its policy')})"
    first = one["first_choice"]
    if first == one["worker"]:
        return f", {told} {why}"
    was_asked = any(attempt["worker"] == first for attempt in one["tried"])
    return f"; {told} was {first} {why}{'' if was_asked else ', which had no seat free, or had left'}"


def _prompt(one: dict[str, Any]) -> str:
    if not one["prompt_tokens"]:
        return f"no worker said how long; {one['predicted_cached_tokens']:,} tokens were expected in its cache"
    found = one["actual_cached_tokens"]
    told = "it did not say how many were" if found is None else f"{found:,} were"
    return f"{one['prompt_tokens']:,} tokens; {one['predicted_cached_tokens']:,} expected in its cache, {told}"


def _answer(one: dict[str, Any]) -> str:
    """An answer that is not streamed shows nothing before its end, and neither does an error."""
    if not one["time_to_first_token_s"]:
        return f"no answer  after {_seconds(one['duration_s'])}"
    kind = "first token" if one["stream"] and one["status"] < 400 else "whole answer after"
    return f"{kind} {_seconds(one['time_to_first_token_s'])}"


def _attempts(one: dict[str, Any]) -> Iterator[str]:
    """Nothing where the only one did not fail."""
    tried, stops = one["tried"], iter(one["resumptions"])
    if len(tried) > 1 or tried[0]["failure"]:
        for at, attempt in enumerate(tried, 1):
            yield f"  attempt {at}  {attempt['worker']} {_fate(one, attempt)}"
            if attempt["broke"] and (stop := next(stops, None)) is not None:
                yield f"             {_resumed(stop)}"
    for stop in stops:
        yield f"  stream     broke ({stop['cause']}); {_resumed(stop)}"


def _fate(one: dict[str, Any], attempt: dict[str, Any]) -> str:
    cause: str = attempt["failure"]
    if cause:
        return (BREAKS if attempt["broke"] else FAILURES).get(cause, cause)
    return "was at work when the client left" if one["outcome"] == "client_gone" else "answered"


def _resumed(stop: dict[str, Any]) -> str:
    told = _RESUMED.get(stop["outcome"], stop["outcome"])
    return f"{told}, {_seconds(stop['gap_s'])} later" if stop["gap_s"] else told


def _waits(one: dict[str, Any]) -> str:
    return f"{_seconds(one['decide_s'])} until the decision, {_seconds(one['queued_s'])} of which in the queue"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"

"""Explains in words what happened to one request, and why, from its row of ``/decisions``. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.core.printable import printable

REASONS = {
    "cached": "it holds the most of the prompt",
    "ring": "the ring puts prompts with this beginning there",
    "load": "it is less busy, which saves more time than the larger prefix on another worker",
    "cold": "no worker holds any of the prompt, and this one was expected to answer first",
    "over_bound": "the ring's first worker had more than its share, and this is the next",
    "session": "it served the session's last request",
    "drawn": "it is the less busy of two workers drawn at random",
    "turn": "it was next in turn",
    "lot": "it was drawn at random",
}
"""The meaning of each reason that a policy gives for its first choice."""
FAILURES = {
    "connect": "could not be connected to",
    "died": "closed the connection before its first byte",
    "timeout": "sent nothing for too long",
    "error": "answered with an error of its own",
    "busy": "said that it is busy",
    "no_model": "does not serve the model any more",
    "left": "left the fleet",
    "unsafe": "could not continue the stream correctly",
    "too_large": "answered with more bytes than the limit allows",
    "overloaded": "answered with more bytes than memory was free for",
}
"""The failure of an attempt, by its cause."""
BREAKS = {
    "died": "closed the connection during its stream",
    "timeout": "sent nothing for too long during its stream",
    "error": "reported an error during its stream",
}
_RESUMED = {
    "exact": "another worker continued after the exact tokens",
    "text": "another worker continued after the text",
    "finished": "only the end was missing",
    "unsafe": "no worker could continue it correctly, and it ended with an error",
    "failed": "no worker could continue it, and it ended with an error",
}


def explain(decision: dict[str, Any]) -> str:
    """The explanation's lines, each with its newline."""
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
        yield "  given up   workers died under it, one after another; this request may be what kills them"


def _choice(one: dict[str, Any]) -> str:
    choice = f"{one['policy']}'s first choice"
    why = f"({one['reason']}: {REASONS.get(one['reason'], 'see its policy')})"
    first = one["first_choice"]
    if first == one["worker"]:
        return f", {choice} {why}"
    was_tried = any(attempt["worker"] == first for attempt in one["tried"])
    return f"; {choice} was {first} {why}{'' if was_tried else ', which had no seat free, or had left'}"


def _prompt(one: dict[str, Any]) -> str:
    if not one["prompt_tokens"]:
        return f"of unknown length; {one['predicted_cached_tokens']:,} tokens expected in its cache"
    cached = one["actual_cached_tokens"]
    found = "it did not report how many were" if cached is None else f"{cached:,} were"
    return f"{one['prompt_tokens']:,} tokens; {one['predicted_cached_tokens']:,} expected in its cache, {found}"


def _answer(one: dict[str, Any]) -> str:
    """The time to the answer. Without a stream, and for an error, the first token comes with the whole answer."""
    if not one["time_to_first_token_s"]:
        return f"no answer  after {_seconds(one['duration_s'])}"
    kind = "first token" if one["stream"] and one["status"] < 400 else "whole answer after"
    return f"{kind} {_seconds(one['time_to_first_token_s'])}"


def _attempts(one: dict[str, Any]) -> Iterator[str]:
    """A line for each attempt, unless a single one succeeded, and a line for each resumption."""
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
    outcome: str = _RESUMED.get(stop["outcome"], stop["outcome"])
    return f"{outcome}, {_seconds(stop['gap_s'])} later" if stop["gap_s"] else outcome


def _waits(one: dict[str, Any]) -> str:
    return f"{_seconds(one['decide_s'])} until the decision, {_seconds(one['queued_s'])} of which in the queue"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"

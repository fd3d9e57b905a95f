"""Limits on what a body may ask of a worker. Pure; raises InvalidJson and InvalidRequest, which name the parameter.

Numbers must be integers: workers also read ``"9"`` and ``9.0``, which a bound on integers alone would miss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from router.core.errors import InvalidJson, InvalidRequest
from router.wire.media import MediaRule, check_messages

MAX_TOKENS = (1 << 31) - 1
"""The largest number of tokens that a worker can count."""

MAX_VALUES = 65_536
"""Most values of a body that is kept for a session: a history of 2,000 messages has about 20,000."""

_CONTAINERS = frozenset({dict, list})


@dataclass(frozen=True, slots=True)
class BodyLimits:
    max_json_depth: int
    max_messages: int
    max_inputs: int
    max_choices: int
    max_logprobs: int
    max_stops: int
    media: MediaRule


def check_body(members: Mapping[str, Any], body: bytes, limits: BodyLimits) -> None:
    """``members``: the decoded ``body``. About 1 µs for 2 kB."""
    check_depth(members, body, limits.max_json_depth)
    for name, value in members.items():
        check = _CHECKS.get(name)
        if check is not None and value is not None:
            check(name, value, limits)


def check_depth(value: object, body: bytes, max_depth: int) -> None:
    """Most bodies have fewer brackets than the allowed depth, and pass at once; the others are walked level by level."""
    if _at_most(body, b"{", max_depth) + _at_most(body, b"[", max_depth) <= max_depth:
        return
    level: list[Any] = [value]
    for _ in range(max_depth):
        deeper: list[Any] = []
        for parent in level:
            children = parent.values() if type(parent) is dict else parent
            if not _CONTAINERS.isdisjoint(map(type, children)):
                deeper += [child for child in children if type(child) in _CONTAINERS]
        if not deeper:
            return
        level = deeper
    raise InvalidJson(f"the body is nested more than {max_depth} deep")


def check_kept(value: object, body: bytes, limits: BodyLimits) -> None:
    """Check the depth and the number of values of a body that is kept decoded while its request is under way."""
    check_depth(value, body, limits.max_json_depth)
    if body.count(b",") + body.count(b"[") + body.count(b"{") < MAX_VALUES:
        return
    waiting, count = [value], 0
    while waiting:
        each = waiting.pop()
        children = list(each.values()) if type(each) is dict else each if type(each) is list else ()
        count += len(children)
        if count > MAX_VALUES:
            raise InvalidRequest(f"the body has more than {MAX_VALUES} values")
        waiting += children


def _at_most(body: bytes, byte: bytes, most: int) -> int:
    """How often ``byte`` occurs, counted up to ``most`` + 1. Ten times as fast as a loop over all bytes."""
    return len(body) - len(body.replace(byte, b"", most + 1))


def _integer(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidRequest(f"{name} must be an integer from {least} to {most}", param=name)


def _choices(name: str, value: object, limits: BodyLimits) -> None:
    _integer(name, value, 1, limits.max_choices)


def _tokens(name: str, value: object, _: BodyLimits) -> None:
    _integer(name, value, 0, MAX_TOKENS)


def _logprobs(name: str, value: object, limits: BodyLimits) -> None:
    if type(value) is not bool:
        _integer(name, value, 0, limits.max_logprobs)


def _stops(name: str, value: object, limits: BodyLimits) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidRequest(f"{name} must be a string or a list of strings", param=name)
    if len(value) > limits.max_stops:
        raise InvalidRequest(f"{name} may hold {limits.max_stops} strings at the most", param=name)


def _messages(name: str, value: object, limits: BodyLimits) -> None:
    if not isinstance(value, list):
        return  # what has no messages at all is refused with its type
    if len(value) > limits.max_messages:
        raise InvalidRequest(f"{name} may hold {limits.max_messages} messages at the most", param=name)
    check_messages(value, limits.media)


def _inputs(name: str, value: object, limits: BodyLimits) -> None:
    """Each input is a request of its own to the worker. A list of numbers is one prompt of token ids."""
    if isinstance(value, list) and len(value) > limits.max_inputs and type(value[0]) is not int:
        raise InvalidRequest(f"{name} may hold {limits.max_inputs} at the most", param=name)


def _extra(_name: str, value: object, limits: BodyLimits) -> None:
    """vLLM reads the same parameters from here."""
    if isinstance(value, dict):
        for inner in _OURS & value.keys():
            _ours(inner, value[inner], limits)


def _ours(name: str, _value: object, _limits: BodyLimits) -> None:
    raise InvalidRequest(
        f"{name} is not for clients to set", param=name
    )  # it names hosts that a worker would connect to


_OURS = frozenset({"kv_transfer_params", "ec_transfer_params"})
_CHECKS: Mapping[str, Callable[[str, object, BodyLimits], None]] = MappingProxyType(
    {
        "messages": _messages,
        **dict.fromkeys(("n", "best_of"), _choices),
        **dict.fromkeys(("max_tokens", "max_completion_tokens", "min_tokens"), _tokens),
        **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), _logprobs),
        **dict.fromkeys(("stop", "stop_sequences"), _stops),
        **dict.fromkeys(("prompt", "input", "query", "queries", "documents", "text_1", "text_2"), _inputs),
        **dict.fromkeys(("data_1", "data_2"), _inputs),
        **dict.fromkeys(_OURS, _ours),
        "vllm_xargs": _extra,
    }
)

"""Chat messages of a log: written, compared, and recognised when a client sends them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from router.core.request.canonical import message_segments

Message = dict[str, Any]
SYSTEM_ROLES = frozenset(("system", "developer"))
_encoder = msgspec.json.Encoder()


class Overlap(NamedTuple):
    """``known``: how many of a request's first messages are the history's last. ``differs``: the request repeats another
    history."""

    known: int
    differs: bool = False


def split_system(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """The system messages before the conversation, and the conversation."""
    at = 0
    while at < len(messages) and messages[at].get("role") in SYSTEM_ROLES:
        at += 1
    return messages[:at], messages[at:]


def message_bytes(message: Message) -> bytes:
    """The JSON that is sent: the client's, without nulls, of which answers have many."""
    return _encoder.encode({name: value for name, value in message.items() if value is not None or name == "content"})


def has_media(message: Mapping[str, Any]) -> bool:
    """True if a part is no text, such as an image."""
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and "text" not in part for part in content)


def digest(message: Mapping[str, Any]) -> int:
    """Equal for messages that say the same. Clients that send an answer back drop what is null or empty, add members of their
    own, or write a call's arguments anew."""
    said = {
        name: message[name] for name in ("role", "content", "tool_calls", "tool_call_id", "name") if message.get(name)
    }
    if "tool_calls" in said:
        said["tool_calls"] = [_called(call) for call in said["tool_calls"]]
    return xxh3_64_intdigest(b"".join(message_segments(said)))


def _called(call: Mapping[str, Any]) -> object:
    """Id, name and arguments of a function call; any other call as it is."""
    function = call.get("function")
    if not function:
        return call
    arguments = function.get("arguments")
    with suppress(msgspec.DecodeError, TypeError, RecursionError):
        arguments = msgspec.json.decode(arguments)
    return call.get("id"), function.get("name"), arguments


def find_overlap(history: Sequence[int], last_answer: int, sent: Sequence[int], *, sends_answers: bool) -> Overlap:
    """How many of the digests ``sent`` the history ends with. ``last_answer``: index of the history's last answer; -1: none,
    and then equal messages prove nothing."""
    if history and len(sent) > len(history) and list(sent[: len(history)]) == list(history):
        return Overlap(len(history))
    if last_answer < 0 or not sends_answers:
        return Overlap(0)
    known = _longest_overlap(history, sent)
    if known >= len(history) - last_answer:
        return Overlap(known)
    return Overlap(0, differs=sent[0] == history[0])


def _longest_overlap(history: Sequence[int], sent: Sequence[int]) -> int:
    """Most of the first ``sent`` that the history ends with. O(sent), by the search of Knuth, Morris and Pratt (1977)."""
    shorter = [0] * len(sent)
    known = 0
    for at in range(1, len(sent)):
        while known and sent[at] != sent[known]:
            known = shorter[known - 1]
        known += sent[at] == sent[known]
        shorter[at] = known
    known = 0
    for value in history[-len(sent) :]:
        while known and value != sent[known]:
            known = shorter[known - 1]
        known += value == sent[known]
    return known

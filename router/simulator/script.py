"""Decides the text that a stream sends with each token, so that characters are whole and stops are obeyed.

Pure. As vLLM does, it holds back bytes until they decode without a broken end. With stop strings it also holds back one
character less than the longest of them. Must never send a broken end, not even at the end of the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

BROKEN = "\ufffd"
_SPECIALS = (b"<|im_start|>", b"<|im_end|>")
_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Stops:
    """Stop strings and ids, which end an answer early: ids from token `min_tokens` on, strings after that token."""

    strings: Sequence[str] = ()
    ids: Sequence[int] = ()
    min_tokens: int = 0
    are_included: bool = False


@dataclass(slots=True, eq=False)
class Script:
    """One answer: for each token its id, and the text sent with it as the inside of a JSON string.

    stop_reason: the string or the id that stopped the answer, or None.
    """

    ids: list[int]
    texts: list[bytes]
    finish_reason: str
    stop_reason: str | int | None = None


def ends_broken(text: bytes) -> bool:
    """Whether the text ends inside a character, or with bytes that are not a character."""
    return text[-2 * _MAX_CHARACTER_BYTES :].decode("utf-8", "replace").endswith(BROKEN)


def leaked(prompt: bytes) -> bytes:
    """The bytes of a prompt that vLLM's decoder sends with the answer.

    There are none if the prompt ends with a whole character. Otherwise the decoder keeps the whole prompt without its
    special tokens, and the answer's first text that decodes begins with the prompt.
    """
    if not ends_broken(prompt):
        return b""
    for special in _SPECIALS:
        prompt = prompt.replace(special, b"")
    return prompt


class _Decoder:
    """Decodes bytes to text and returns it when its end is whole. `held`: bytes from before the first token."""

    __slots__ = ("_held",)

    def __init__(self, held: bytes) -> None:
        self._held = held

    def step(self, token: bytes) -> str:
        held = self._held + token
        text = held.decode("utf-8", "replace")
        if text.endswith(BROKEN):
            self._held = held
            return ""
        self._held = b""
        return text


def _find_stop(text: str, old: int, strings: Sequence[str]) -> tuple[str, int] | None:
    """The first stop string that ends after `old` characters, which were searched before, and the place of its start."""
    found = [
        (at + len(stop), order, at)
        for order, stop in enumerate(strings)
        if (at := text.find(stop, max(0, old + 1 - len(stop)))) >= 0
    ]
    if not found or len(text) == old:
        return None
    _, order, at = min(found)
    return strings[order], at


def write_script(ids: Sequence[int], tokens: Sequence[bytes], held: bytes, stops: Stops, finish_reason: str) -> Script:
    """The script of an answer with these tokens and this finish reason, cut at its first stop."""
    decoder, script = _Decoder(held), Script([], [], finish_reason)
    holds = 0 if stops.are_included else max(map(len, stops.strings), default=1) - 1
    said, sent = "", 0
    for count, (number, token) in enumerate(zip(ids, tokens, strict=True), start=1):
        script.ids.append(number)
        old, is_end = len(said), False
        if count >= stops.min_tokens and number in stops.ids:
            script.finish_reason, script.stop_reason, is_end = "stop", number, True
        if not is_end or stops.are_included:
            said += decoder.step(token)
        if count > stops.min_tokens and (stop := _find_stop(said, old, stops.strings)):
            script.finish_reason, script.stop_reason, is_end = "stop", stop[0], True
            said = said[: stop[1] + len(stop[0]) * stops.are_included]
        is_end = is_end or count == len(ids)
        upto = max(sent, len(said) - (0 if is_end else holds))
        script.texts.append(_escape(said[sent:upto]))
        sent = upto
        if is_end:
            break
    return script


def _escape(text: str) -> bytes:
    return msgspec.json.encode(text)[1:-1] if text else b""

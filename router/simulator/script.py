"""What a stream says token by token, where that is not simply the tokens' text: characters are whole, stops are obeyed.

Pure. A worker holds bytes back until they decode without a broken end, and with stop strings one character less than
the longest of them. Must never let go of a broken end, not even when the answer is over: vLLM does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

BROKEN = "\ufffd"
_SPECIALS = (b"<|im_start|>", b"<|im_end|>")
_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer early. Neither strings nor ids do before `min_tokens`; strings only after them."""

    strings: Sequence[str] = ()
    ids: Sequence[int] = ()
    min_tokens: int = 0
    are_included: bool = False


@dataclass(slots=True, eq=False)
class Script:
    """One answer: for each token its id and the text that leaves with it, as the inside of a JSON string; and its end.

    stop_reason: the string or the id that stopped it, or None.
    """

    ids: list[int]
    texts: list[bytes]
    finish_reason: str
    stop_reason: str | int | None = None


def ends_broken(text: bytes) -> bool:
    """Whether it ends inside a character, or in what is none."""
    return text[-2 * _MAX_CHARACTER_BYTES :].decode("utf-8", "replace").endswith(BROKEN)


def leaked(prompt: bytes) -> bytes:
    """What the worker's decoder holds of a prompt: nothing, or all of it but special tokens, if its end is broken.

    The first text that can be decoded whole then begins with the prompt, and that is what leaves.
    """
    if not ends_broken(prompt):
        return b""
    for special in _SPECIALS:
        prompt = prompt.replace(special, b"")
    return prompt


class _Decoder:
    """Bytes to text, given out when the end is whole; `held` are bytes that came before the first token."""

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
    """The stop string whose end comes first and past the `old` characters searched before, and where it begins."""
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
    """The script of an answer that would have these tokens and end so, unless it stops sooner."""
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

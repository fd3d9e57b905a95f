"""Items of clients → chat messages, as the compact JSON that is stored and sent. Pure; raises InvalidRequest, which names the
item.

An assistant's consecutive reasoning, text and tool calls are one chat message, and single items here. So items that a client
sends back become the message that was stored. Reasoning is stored beside tool calls only, where models use it; elsewhere chat
templates drop it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from router.sessions.openai.values import JsonObject, read_choice, read_list, read_object, read_text, refuse
from router.wire.media import MediaRule

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_TEXTS = frozenset({"input_text", "output_text", "text"})
_DETAILS = frozenset({"auto", "low", "high"})
"""Values of ``detail`` that chat completions know, too."""

_encoder = msgspec.json.Encoder()


def read_items(items: Sequence[object], media: MediaRule | None, param: str = "input") -> list[bytes]:
    """``media``: what images may name; None: anything. Linear."""
    messages = _Messages(media)
    for number, item in enumerate(items):
        where = f"{param}[{number}]"
        members = read_object(item, where)
        kind = read_text(members.get("type") or "message", f"{where}.type")
        read = _READERS.get(kind)
        if read is None:
            refuse(f"{where} is of type {kind[:64]!r}, {_REFUSED.get(kind, 'which is not supported here')}", where)
        read(messages, members, where)
    messages.end_assistant()
    return messages.done


def user_message(text: str) -> bytes:
    return _encoder.encode({"role": "user", "content": text})


def assistant_message(text: str, calls: Sequence[JsonObject], *, reasoning: str = "", refusal: str = "") -> JsonObject:
    """An answer as logs have it. ``calls``: as in chat completions; beside them an empty text is null."""
    message: JsonObject = {"role": "assistant", "content": text or (None if calls else "")}
    if refusal:
        message["refusal"] = refusal
    if calls:
        message["tool_calls"] = calls
        if reasoning:
            message["reasoning"] = reasoning
    return message


def tool_call(call_id: str, name: str, arguments: str) -> JsonObject:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


class _Messages:
    """The messages so far, and the unfinished one of the assistant."""

    def __init__(self, media: MediaRule | None) -> None:
        self.media = media
        self.done: list[bytes] = []
        self._reasoning: list[str] = []
        self._said: tuple[str, str] | None = None
        self._calls: list[JsonObject] = []

    def end_assistant(self) -> None:
        if self._said is not None or self._calls:
            text, refusal = self._said or ("", "")
            message = assistant_message(text, self._calls, reasoning="".join(self._reasoning), refusal=refusal)
            self.done.append(_encoder.encode(message))
        self._reasoning, self._said, self._calls = [], None, []

    def add(self, message: JsonObject) -> None:
        """Adds a message of anybody but the assistant."""
        self.end_assistant()
        self.done.append(_encoder.encode(message))

    def add_reasoning(self, text: str) -> None:
        self._begin_anew()
        self._reasoning.append(text)

    def add_said(self, text: str, refusal: str) -> None:
        self._begin_anew()
        self._said = (text, refusal)

    def add_call(self, call: JsonObject) -> None:
        self._calls.append(call)

    def _begin_anew(self) -> None:
        """Ends the assistant's message if it has text or calls already."""
        if self._said is not None or self._calls:
            self.end_assistant()


def _message(messages: _Messages, item: JsonObject, where: str) -> None:
    role = read_choice(item.get("role"), f"{where}.role", _ROLES)
    content = item.get("content")
    if role == "assistant":
        messages.add_said(*_said(content, f"{where}.content"))
    else:
        messages.add({"role": role, "content": _content(content, messages.media, f"{where}.content")})


def _call(messages: _Messages, item: JsonObject, where: str) -> None:
    parts = (read_text(item.get(name), f"{where}.{name}") for name in ("call_id", "name", "arguments"))
    messages.add_call(tool_call(*parts))


def _call_output(messages: _Messages, item: JsonObject, where: str) -> None:
    call_id = read_text(item.get("call_id"), f"{where}.call_id")
    content = _content(item.get("output"), messages.media, f"{where}.output")
    messages.add({"role": "tool", "content": content, "tool_call_id": call_id})


def _reasoning(messages: _Messages, item: JsonObject, where: str) -> None:
    """The item's text, or else its summary's. Encrypted reasoning is another service's."""
    for name in ("content", "summary"):
        parts = read_list(item.get(name) or [], f"{where}.{name}")
        texts = [_text(read_object(part, f"{where}.{name}"), f"{where}.{name}") for part in parts]
        if texts:
            messages.add_reasoning("\n".join(texts))
            return


def _said(content: object, where: str) -> tuple[str, str]:
    """An assistant's text and refusal."""
    if isinstance(content, str):
        return content, ""
    text, refusal = "", ""
    for number, each in enumerate(read_list(content, where)):
        place = f"{where}[{number}]"
        part = read_object(each, place)
        if part.get("type") == "refusal":
            refusal += read_text(part.get("refusal"), f"{place}.refusal")
        elif _is_one_of(part.get("type"), _TEXTS):
            text += _text(part, place)
        else:
            _refuse_part(part, place)
    return text, refusal


def _content(content: object, media: MediaRule | None, where: str) -> str | list[JsonObject]:
    """A single text part becomes its text, so that both forms make the same prompt."""
    if isinstance(content, str):
        return content
    parts: list[JsonObject] = []
    for number, each in enumerate(read_list(content, where)):
        place = f"{where}[{number}]"
        part = read_object(each, place)
        if _is_one_of(part.get("type"), _TEXTS):
            parts.append({"type": "text", "text": _text(part, place)})
        elif part.get("type") == "input_image":
            parts.append(_image(part, media, place))
        else:
            _refuse_part(part, place)
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _is_one_of(value: object, names: Collection[str]) -> bool:
    """``value``: any JSON, also what no set can have."""
    return isinstance(value, str) and value in names


def _text(part: JsonObject, where: str) -> str:
    return read_text(part.get("text"), f"{where}.text")


def _image(part: JsonObject, media: MediaRule | None, where: str) -> JsonObject:
    if part.get("file_id") is not None:
        refuse("file_id is not supported: this router keeps no files", f"{where}.file_id")
    param = f"{where}.image_url"
    image: JsonObject = {"url": read_text(part.get("image_url"), param)}
    if media is not None and not media.allows(image["url"]):
        refuse("image_url must be a data: URI; this router lets workers fetch nothing else", param)
    if _is_one_of(part.get("detail"), _DETAILS):
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _refuse_part(part: JsonObject, where: str) -> None:
    kind = str(part.get("type"))[:64]
    refuse(f"{where} is of type {kind!r}, which is not supported here: only text and images are", where)


_READERS: Mapping[str, Callable[[_Messages, JsonObject, str], Any]] = MappingProxyType(
    {"message": _message, "function_call": _call, "function_call_output": _call_output, "reasoning": _reasoning}
)
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "item_reference": "which is not supported: send the item itself, or name the response or conversation that it is in",
        "compaction": "which only the service that made it can read",
    }
)

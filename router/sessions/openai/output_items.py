"""Output items of an answer under way, text and calls. Each writes events as it grows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from router.sessions.openai.shapes import (
    call_item,
    message_item,
    reasoning_item,
    reasoning_part,
    refusal_part,
    text_part,
)
from router.sessions.openai.values import JsonObject


class Write(Protocol):
    """Writes one event: its type, and its members beside type and number."""

    def __call__(self, kind: str, /, **members: Any) -> None: ...


def write_nothing(_kind: str, /, **_members: Any) -> None:
    """For answers without events."""


class _Part:
    """One content part of a message or of reasoning."""

    __slots__ = ("_logprobs", "_texts", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._texts: list[str] = []
        self._logprobs: list[JsonObject] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def logprobs(self) -> dict[str, list[JsonObject]]:
        """The member for events of parts that have log probabilities."""
        return {"logprobs": self._logprobs} if self.kind == "output_text" else {}

    def add(self, text: str, logprobs: Sequence[JsonObject]) -> None:
        self._texts.append(text)
        self._logprobs += logprobs

    def shape(self) -> JsonObject:
        if self.kind == "output_text":
            return text_part(self.text, self._logprobs)
        return refusal_part(self.text) if self.kind == "refusal" else reasoning_part(self.text)


class TextItem:
    """A ``message``, or ``reasoning``. ``status``: in_progress until it is closed."""

    def __init__(self, kind: str, item_id: str, output_index: int, write: Write) -> None:
        self.status = "in_progress"
        self.is_whole = True
        """The item may end here, if the next begins."""
        self._kind = kind
        self._id = item_id
        self._write = write
        self._place = {"item_id": item_id, "output_index": output_index}
        self._parts: list[_Part] = []
        write("response.output_item.added", output_index=output_index, item=self.shape())

    def add(self, kind: str, text: str, logprobs: Sequence[JsonObject] = ()) -> None:
        """``kind`` of the content part: output_text, refusal or reasoning_text. An empty text opens the part."""
        if not self._parts or self._parts[-1].kind != kind:
            self._close_part()
            self._parts.append(_Part(kind))
            self._write_event("response.content_part.added", part=self._parts[-1].shape())
        part = self._parts[-1]
        part.add(text, logprobs)
        if text:
            members = {"logprobs": logprobs} if kind == "output_text" else {}
            self._write_event(f"response.{kind}.delta", delta=text, **members)

    def close(self, status: str) -> None:
        """Does nothing if the item is closed."""
        if self.status != "in_progress":
            return
        self._close_part()
        self.status = status
        self._write("response.output_item.done", output_index=self._place["output_index"], item=self.shape())

    def shape(self) -> JsonObject:
        parts = [part.shape() for part in self._parts]
        return (reasoning_item if self._kind == "reasoning" else message_item)(self._id, parts, self.status)

    def text_of(self, kind: str) -> str:
        return "".join(part.text for part in self._parts if part.kind == kind)

    def _close_part(self) -> None:
        if self._parts:
            part = self._parts[-1]
            name = "refusal" if part.kind == "refusal" else "text"
            self._write_event(f"response.{part.kind}.done", **{name: part.text}, **part.logprobs)
            self._write_event("response.content_part.done", part=part.shape())

    def _write_event(self, kind: str, **members: Any) -> None:
        self._write(kind, **self._place, content_index=len(self._parts) - 1, **members)


class CallItem:
    """A ``function_call``. Its events begin once its name is known."""

    def __init__(self, item_id: str, output_index: int, write: Write) -> None:
        self.status = "in_progress"
        self.call_id = self.name = ""
        self._id = item_id
        self._write = write
        self._place = {"item_id": item_id, "output_index": output_index}
        self._arguments: list[str] = []
        self._is_shown = False

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    @property
    def is_whole(self) -> bool:
        """True if nothing but white space can follow."""
        arguments = self.arguments
        if not arguments.rstrip().endswith("}"):
            return False
        try:
            return isinstance(msgspec.json.decode(arguments), dict)
        except (msgspec.DecodeError, RecursionError):
            return False

    def add(self, call_id: str, name: str, arguments: str) -> None:
        """Each may be empty. The first id and name count, since some workers repeat them."""
        self.call_id = self.call_id or call_id
        self.name = self.name or name
        if not self._is_shown and self.name:
            self._begin()
        if arguments:
            self._arguments.append(arguments)
            if self._is_shown:
                self._write_event("delta", delta=arguments)

    def close(self, status: str) -> None:
        """Does nothing if the item is closed."""
        if self.status != "in_progress":
            return
        if not self._is_shown:
            self._begin()
        self._write_event("done", arguments=self.arguments)
        self.status = status
        self._write("response.output_item.done", output_index=self._place["output_index"], item=self.shape())

    def shape(self) -> JsonObject:
        return call_item(self._id, self.call_id, self.name, self.arguments, self.status)

    def _begin(self) -> None:
        """Arguments that came before the name follow it."""
        early, self._arguments = self.arguments, []
        self.call_id = self.call_id or f"call_{self._id}"
        self._write("response.output_item.added", output_index=self._place["output_index"], item=self.shape())
        self._is_shown = True
        if early:
            self._arguments.append(early)
            self._write_event("delta", delta=early)

    def _write_event(self, what: str, **members: Any) -> None:
        self._write(f"response.function_call_arguments.{what}", **self._place, **members)

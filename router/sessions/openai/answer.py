"""Puts one answer of the Responses API together from its parts, and writes its events. Pure.

Items follow each other: text after reasoning ends the reasoning, and a call after text ends the text. A call ends with the next
item once its arguments are a whole JSON object. Until then it stays open, since workers may write several calls at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from router.sessions.openai.messages import assistant_message, tool_call
from router.sessions.openai.output_items import CallItem, TextItem, Write, write_nothing
from router.sessions.openai.shapes import MESSAGE, REASONING, Head, ending, response, usage_of
from router.sessions.openai.values import JsonObject
from router.wire.completion import BadAnswer, Call, Choice, Message


class Outcome(NamedTuple):
    """The whole response, and its messages for the log as compact JSON; none where it failed."""

    response: JsonObject
    messages: list[bytes]


class _Logprob(msgspec.Struct):
    token: str = ""
    logprob: float = -9999.0
    bytes: list[int] | None = None
    top_logprobs: list[_Logprob] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class ResponseAnswer:
    """``take`` each part, then ``finish``."""

    def __init__(self, head: Head, write: Write = write_nothing) -> None:
        self.finish_reason = ""
        self.usage: dict[str, Any] | None = None
        self._head = head
        self._write = write
        self._items: list[TextItem | CallItem] = []
        """In the order of their output indices."""
        self._text_items: dict[str, TextItem] = {}
        self._calls: dict[int, CallItem] = {}
        """By chat's index."""

    def take(self, choice: Choice, said: Message) -> None:
        """Raises BadAnswer."""
        if reasoning := said.reasoning or said.reasoning_content:
            self._text_item("reasoning").add("reasoning_text", reasoning)
        if said.content:
            logprobs = public_logprobs(choice.logprobs) if self._head.wants_logprobs else []
            self._text_item("message").add("output_text", said.content, logprobs)
        if said.refusal:
            self._text_item("message").add("refusal", said.refusal)
        for call in said.tool_calls or ():
            self._take_call(call)
        self.finish_reason = choice.finish_reason or self.finish_reason

    def finish(self, completed_at: int) -> Outcome:
        """Raises BadAnswer if the answer has no reason for finishing, or the worker aborted it."""
        if not self.finish_reason:
            raise BadAnswer("the worker's answer has no end")
        status, incomplete = ending(self.finish_reason)
        if status == "failed":
            raise BadAnswer("the worker aborted its answer")
        if not self._items:
            self._text_item("message").add("output_text", "")
        for item in self._items[:-1]:
            item.close("completed")
        self._items[-1].close(status)
        whole = response(
            self._head,
            status,
            self.output,
            usage=usage_of(self.usage),
            incomplete=incomplete,
            completed_at=completed_at if status == "completed" else None,
        )
        return Outcome(whole, [self._message()])

    @property
    def output(self) -> list[JsonObject]:
        """The items so far."""
        return [item.shape() for item in self._items]

    def _text_item(self, kind: str) -> TextItem:
        """The open text item of that kind, or a new one."""
        item = self._text_items.get(kind)
        if item is None or item.status != "in_progress":
            part = REASONING if kind == "reasoning" else MESSAGE
            if item is not None:  # rare: text goes on after another item; in the log it is one with the first
                part = REASONING - 1 - len(self._items)
            self._close_others()
            item = TextItem(kind, self._head.item_id(part), len(self._items), self._write)
            self._text_items[kind] = item
            self._items.append(item)
        return item

    def _take_call(self, call: Call) -> None:
        index = call.index or 0
        item = self._calls.get(index)
        if item is None:
            self._close_others()
            item = CallItem(self._head.item_id(len(self._calls) + 1), len(self._items), self._write)
            self._calls[index] = item
            self._items.append(item)
        function = call.function
        arguments = (function.arguments if function else None) or ""
        if item.status == "in_progress":
            item.add(call.id or "", (function.name if function else None) or "", arguments)
        elif arguments.strip():
            raise BadAnswer("the worker added to a tool call after its end")

    def _close_others(self) -> None:
        for item in self._items:
            if item.status == "in_progress" and item.is_whole:
                item.close("completed")

    def _message(self) -> bytes:
        text_items = [item for item in self._items if isinstance(item, TextItem)]
        text, reasoning, refusal = (
            "".join(item.text_of(kind) for item in text_items) for kind in ("output_text", "reasoning_text", "refusal")
        )
        calls = [
            tool_call(item.call_id, item.name, item.arguments) for item in self._items if isinstance(item, CallItem)
        ]
        return msgspec.json.encode(assistant_message(text, calls, reasoning=reasoning, refusal=refusal))


def public_logprobs(logprobs: object) -> list[JsonObject]:
    """The worker's log probabilities as the Responses API has them. Raises BadAnswer."""
    try:
        read = msgspec.convert(logprobs, _Logprobs | None)
    except msgspec.ValidationError:
        raise BadAnswer("the worker's log probabilities cannot be read") from None
    return [
        {**_logprob(each), "top_logprobs": [_logprob(other) for other in each.top_logprobs or ()]}
        for each in (read and read.content) or ()
    ]


def _logprob(each: _Logprob) -> JsonObject:
    spelled = list(each.token.encode()) if each.bytes is None else each.bytes
    return {"token": each.token, "bytes": spelled, "logprob": each.logprob}

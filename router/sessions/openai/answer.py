"""One answer, put together from the pieces that it comes in, and told on the way. Pure.

Items follow each other: text after reasoning ends the reasoning, a call after text ends the text. A call is ended by the next
item once its arguments are a whole JSON object; until then it stays open, since workers may write several at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from router.sessions.openai.messages import assistant_message, tool_call
from router.sessions.openai.output_items import CallItem, TextItem, Write, tell_nobody
from router.sessions.openai.shapes import MESSAGE, REASONING, Head, ending, response, usage_of
from router.sessions.openai.values import JsonObject
from router.wire.completion import BadAnswer, Call, Choice, Message


class Outcome(NamedTuple):
    """The whole response, and what the log shall keep: chat messages as compact JSON, none where it failed."""

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
    """``take`` each piece, then ``finish``."""

    def __init__(self, head: Head, write: Write = tell_nobody) -> None:
        self.finish_reason = ""
        self.usage: dict[str, Any] | None = None
        self._head = head
        self._write = write
        self._items: list[TextItem | CallItem] = []
        """In the order of their output indices."""
        self._spoken: dict[str, TextItem] = {}
        self._calls: dict[int, CallItem] = {}
        """By chat's index."""

    def take(self, choice: Choice, said: Message) -> None:
        """Raises BadAnswer."""
        if reasoning := said.reasoning or said.reasoning_content:
            self._speak("reasoning").add("reasoning_text", reasoning)
        if said.content:
            logprobs = public_logprobs(choice.logprobs) if self._head.wants_logprobs else []
            self._speak("message").add("output_text", said.content, logprobs)
        if said.refusal:
            self._speak("message").add("refusal", said.refusal)
        for call in said.tool_calls or ():
            self._take_call(call)
        self.finish_reason = choice.finish_reason or self.finish_reason

    def finish(self, completed_at: int) -> Outcome:
        """Raises BadAnswer where nothing says that it is whole, or the worker that it gave up."""
        if not self.finish_reason:
            raise BadAnswer("the worker's answer has no end")
        status, incomplete = ending(self.finish_reason)
        if status == "failed":
            raise BadAnswer("the worker gave up its answer")
        if not self._items:
            self._speak("message").add("output_text", "")
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
        return Outcome(whole, [self._kept()])

    @property
    def output(self) -> list[JsonObject]:
        """Items, as far as they are there."""
        return [item.shape() for item in self._items]

    def _speak(self, kind: str) -> TextItem:
        """The open item of that kind, or a new one."""
        item = self._spoken.get(kind)
        if item is None or item.status != "in_progress":
            part = REASONING if kind == "reasoning" else MESSAGE
            if (
                item is not None
            ):  # said on when another had begun: rare, and in the kept message it is one with the first
                part = REASONING - 1 - len(self._items)
            self._close_others()
            item = TextItem(kind, self._head.item_id(part), len(self._items), self._write)
            self._spoken[kind] = item
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
            raise BadAnswer("the worker added to a tool call that was whole")

    def _close_others(self) -> None:
        for item in self._items:
            if item.status == "in_progress" and item.is_whole:
                item.close("completed")

    def _kept(self) -> bytes:
        spoken = [item for item in self._items if isinstance(item, TextItem)]
        text, reasoning, refusal = (
            "".join(item.text_of(kind) for item in spoken) for kind in ("output_text", "reasoning_text", "refusal")
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
        raise BadAnswer("the worker's log probabilities are none") from None
    return [
        {**_logprob(each), "top_logprobs": [_logprob(other) for other in each.top_logprobs or ()]}
        for each in (read and read.content) or ()
    ]


def _logprob(each: _Logprob) -> JsonObject:
    spelled = list(each.token.encode()) if each.bytes is None else each.bytes
    return {"token": each.token, "bytes": spelled, "logprob": each.logprob}

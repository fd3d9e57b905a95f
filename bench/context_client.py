"""One conversation, turn by turn, with the worker's figures of each turn.

The client sends either the whole prompt, as clients do that keep their own history, or the new message alone, to a
session of the router.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec
from aiohttp import ClientSession

from bench.dialogues import Count, Turn

TEMPLATE_TOKENS = 10
"""Tokens that a chat template adds to a message, about."""
LAST_MESSAGES = 20


class Marks(NamedTuple):
    """Tokens of a history without its system message."""

    high: int
    low: int


class Sample(NamedTuple):
    """One turn, in tokens; ``ttft_s``: wall seconds. ``own``: the new message. ``raw``: the prompt without any drop."""

    own: int
    raw: int
    prompt: int
    cached: int
    answered: int
    ttft_s: float


Keep = Callable[[Sequence[int], int, Marks], int]
"""Each message's tokens, the first message sent in the turn before, and the marks → the first message to send."""


def keep_all(_tokens: Sequence[int], _first: int, _watermarks: Marks) -> int:
    return 0


def keep_newest(tokens: Sequence[int], _first: int, _watermarks: Marks) -> int:
    return max(0, len(tokens) - LAST_MESSAGES)


def drop_oldest(tokens: Sequence[int], first: int, watermarks: Marks) -> int:
    """Drops as few of the oldest messages as possible."""
    return _first_within(tokens, first, watermarks.high)


def drop_to_low(tokens: Sequence[int], first: int, watermarks: Marks) -> int:
    """Drops many messages at once, and seldom. The rest begins with a question."""
    if sum(tokens[first:]) <= watermarks.high:
        return first
    cut = _first_within(tokens, first, watermarks.low)
    return min(cut + cut % 2, len(tokens) - 1)


def _first_within(tokens: Sequence[int], first: int, budget: int) -> int:
    total = sum(tokens[first:])
    while total > budget and first < len(tokens) - 1:
        total -= tokens[first]
        first += 1
    return first


class Sender(Protocol):
    path: str

    def messages(self, new: bytes, tokens: int) -> list[bytes]: ...
    def answered(self, answer: bytes, tokens: int) -> None: ...


class HistorySender:
    """Keeps the history and sends the part of it that ``keep`` returns."""

    path = "/v1/chat/completions"

    def __init__(self, system: bytes, keep: Keep, watermarks: Marks) -> None:
        self._system, self._keep, self._watermarks = system, keep, watermarks
        self._bodies: list[bytes] = []
        self._tokens: list[int] = []
        self._first = 0

    def messages(self, new: bytes, tokens: int) -> list[bytes]:
        self.answered(new, tokens)
        self._first = self._keep(self._tokens, self._first, self._watermarks)
        return [self._system, *self._bodies[self._first :]]

    def answered(self, answer: bytes, tokens: int) -> None:
        self._bodies.append(answer)
        self._tokens.append(tokens)


class SessionSender:
    """Sends the new message; the router keeps the history."""

    def __init__(self, system: bytes, name: str) -> None:
        self.path = f"/v1/sessions/{name}/chat/completions"
        self._first = [system]

    def messages(self, new: bytes, _tokens: int) -> list[bytes]:
        first, self._first = self._first, []
        return [*first, new]

    def answered(self, answer: bytes, tokens: int) -> None:
        """Keeps nothing: the router has the history."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings that all conversations of a run share.

    ``window``: most tokens of a prompt and its answer. ``pause_s`` (wall): from an answer to the next question.
    """

    url: str
    model: str
    system: str
    window: int
    count: Count
    pause_s: float


class Reply(NamedTuple):
    text: str
    usage: Mapping[str, Any]
    ttft_s: float


async def converse(http: ClientSession, setting: Setting, sender: Sender, turns: Sequence[Turn]) -> list[Sample]:
    """Runs until the turns or the window end. Raises RuntimeError if an answer is not usable."""
    samples: list[Sample] = []
    raw = setting.count(setting.system) + TEMPLATE_TOKENS
    sent = raw
    for turn in turns:
        own = setting.count(turn.text) + TEMPLATE_TOKENS
        if sent + own + turn.answer_tokens + TEMPLATE_TOKENS > setting.window:
            break
        messages = sender.messages(_message("user", turn.text), own)
        reply = await ask(http, setting.url + sender.path, _body(setting.model, messages, turn.answer_tokens))
        prompt, answered = reply.usage["prompt_tokens"], reply.usage["completion_tokens"]
        cached = (reply.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        raw += own
        samples.append(Sample(own, raw, prompt, cached, answered, reply.ttft_s))
        raw += answered + TEMPLATE_TOKENS
        sent = prompt + answered
        sender.answered(_message("assistant", reply.text), answered + TEMPLATE_TOKENS)
        await asyncio.sleep(setting.pause_s)
    return samples


async def ask(http: ClientSession, url: str, body: bytes) -> Reply:
    """A stream's text, its usage, and the time until its first text."""
    began, first_s = time.perf_counter(), 0.0
    texts: list[str] = []
    usage: Mapping[str, Any] = {}
    is_whole = False
    async with http.post(url, data=body, headers={"content-type": "application/json"}) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status} from {url}: {(await response.text())[:500]}")
        async for line in response.content:
            if not line.startswith(b"data: ") or (is_whole := line.startswith(b"data: [DONE]")):
                continue
            event = msgspec.json.decode(line[6:])
            if "error" in event:
                raise RuntimeError(f"an error within a stream from {url}: {event['error']}")
            usage = event.get("usage") or usage
            if event["choices"] and (text := event["choices"][0]["delta"].get("content")):
                first_s = first_s or time.perf_counter() - began
                texts.append(text)
    if not is_whole or not usage:
        raise RuntimeError(f"a stream from {url} ended without its end or its usage")
    return Reply("".join(texts), usage, first_s or time.perf_counter() - began)


def _body(model: str, messages: Sequence[bytes], answer_tokens: int) -> bytes:
    """A request's body. Messages are JSON already, so that no turn encodes the long history again."""
    return b'{"model":%b,"messages":[%b],"max_tokens":%d,"stream":true,"stream_options":{"include_usage":true}}' % (
        msgspec.json.encode(model),
        b",".join(messages),
        answer_tokens,
    )


def _message(role: str, text: str) -> bytes:
    return msgspec.json.encode({"role": role, "content": text})


def system_message(text: str) -> bytes:
    return _message("system", text)

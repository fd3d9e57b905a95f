"""A session whose worker counts with a real tokenizer, refuses what does not fit its window, and says what it counted; and a
router that counts with the same, but knows of the worker's template only what it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import msgspec

from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request
from router.proxy.ports import Client
from router.sessions.context.compaction import Source
from router.sessions.context.history import History
from router.sessions.planner import TurnRequest
from router.sessions.summaries import Written
from router.sessions.tokens.cache import CountCache
from router.sessions.tokens.counts import TokenCounts
from router.sessions.tokens.local import LocalCounter
from router.sessions.tokens.texts import own_text
from tests.sessions.desk import ACME, SID, FakeClient, FakeDispatch, Points, Replica
from tests.sessions.kept_histories import FakeWriter, WordIndex
from tests.sessions.stores.memory import MemoryStore
from tests.sessions.tokens.desk import Notes

Message = dict[str, Any]
CountText = Callable[[str], int]

MEDIA_TOKENS = 64
PER_MESSAGE, FIXED = 5, 11
"""What the worker's template adds. The router's first belief is another."""
ANSWER_TOKENS = 50


class CountingWorker(FakeDispatch):
    """Answers what it is told to."""

    def __init__(self, points: Points, count_text: CountText, window: int) -> None:
        super().__init__(points)
        self._count_text = count_text
        self.window = window
        self.answer: Message = {}
        self.counted = [1, 4]
        """Tokens and bytes of all prompts."""

    def size(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> int:
        """Tokens of a prompt."""
        own = [own_text(message) for message in messages]
        texts = sum(self._count_text(text) + media * MEDIA_TOKENS + PER_MESSAGE for text, media in own)
        return texts + FIXED + (self._count_text(msgspec.json.encode(tools).decode()) if tools else 0)

    async def reply(self, request: Request, client: Client, record: Record) -> None:
        body = msgspec.json.decode(request.body)
        record.prompt_tokens = self.size(body["messages"], body.get("tools") or ())
        if record.prompt_tokens + body["max_tokens"] > self.window:
            await client.answer(Reply(400, {}, b'{"error":{"message":"too long"}}', is_stream=False), record)
            return
        self.counted[0] += record.prompt_tokens
        self.counted[1] += request.fingerprint.prompt_bytes
        text = own_text(self.answer).text
        choice = {"index": 0, "message": self.answer, "finish_reason": "stop"}
        usage = {"prompt_tokens": record.prompt_tokens, "completion_tokens": self._count_text(text), "total_tokens": 0}
        whole = {"id": "c", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        await client.answer(Reply(200, {}, msgspec.json.encode(whole), is_stream=False), record)


class CountingWriter(FakeWriter):
    """Never the same notes twice."""

    def __init__(self, count_text: CountText) -> None:
        super().__init__()
        self._count_text = count_text
        self._numbers = count(1)

    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        text = f"They spoke of {next(self._numbers)} things."
        return Written(text, self._count_text(text), source.tokens)


class Play:
    """One session, and what was said in it."""

    def __init__(self, count_text: CountText, window: int, strategy: str) -> None:
        points = Points()
        self.worker = CountingWorker(points, count_text, window)
        counter = LocalCounter("tokenizer_json", count_text, ThreadPoolExecutor(1), max_loop_bytes=1 << 40)
        self.counts = TokenCounts(
            MEDIA_TOKENS,
            lambda _model: counter,
            self,
            CountCache(10_000),
            Notes(),
            lambda: 1.0,
            ThreadPoolExecutor(1),
        )
        self.replica = Replica(
            MemoryStore(lambda: 100.0, lambda: 100.0),
            self.worker,
            points,
            lambda: 100.0,
            bytes_per_token=self.bytes_per_token,
            strategy=strategy,
            window=window,
            counts=self.counts,
            total=self.counts.total,
            writer=CountingWriter(count_text),
            index=WordIndex(),
        )

    def knows(self, _model: str) -> bool:
        return True

    def bytes_per_token(self, _model: str) -> float:
        return self.worker.counted[1] / self.worker.counted[0]

    async def say(
        self,
        *messages: Message,
        answer: Message,
        tools: Sequence[Any] | None = None,
        instructions: Sequence[Message] = (),
    ) -> FakeClient:
        """``tools``: None for those of before."""
        self.worker.answer = answer
        more: dict[str, Any] = {} if tools is None else {"tools": tools}
        return await self.replica.take(
            *messages, stream=False, max_tokens=ANSWER_TOKENS, instructions=instructions, **more
        )

    async def clean(self) -> None:
        """Runs all jobs of the compactor."""
        compactor = self.replica.turns.context_window.compactor
        while compactor.jobs:
            await compactor.do(compactor.jobs.popitem()[1])

    async def history(self) -> History:
        return (await self.replica.histories.load(SID, ACME.rules.tenant))[0]

    @property
    def prompt(self) -> dict[str, Any]:
        """The body of the newest."""
        body: dict[str, Any] = msgspec.json.decode(self.worker.asked[-1].body)
        return body

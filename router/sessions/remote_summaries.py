"""Summaries by an OpenAI-compatible API outside the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from router.core.errors import WorkerError
from router.runtime.bounded_body import read_body
from router.sessions.context.compaction import ANY, Source
from router.sessions.context.history import History
from router.sessions.context.summaries import ask_for_summary
from router.sessions.openai.chat_answers import read_answer
from router.sessions.planner import TurnRequest
from router.sessions.summaries import Written, read_summary, summary_params
from router.wire.completion import BadAnswer

MAX_REPLY_BYTES = 1 << 20


class _Unusable(Exception):
    """The message says why."""


@dataclass(frozen=True, slots=True)
class RemoteSummaryWriter:
    """``url``: the API's base. ``model``: empty for each session's own."""

    url: str
    api_key: str
    model: str
    timeout_s: float

    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:  # noqa: ARG002
        """Raises WorkerError."""
        body = {
            "model": request.caller.rules.summary_model or self.model or request.incoming.model,
            "messages": ask_for_summary(source.summaries, source.items, max_tokens),
            **summary_params(max_tokens),
        }
        try:
            answer = read_answer(await self._post(msgspec.json.encode(body)))
        except (ClientError, TimeoutError, BadAnswer, _Unusable) as error:
            raise WorkerError(f"{self.url} wrote no summary: {error or 'it took too long'}") from None
        usage: dict[str, Any] = answer.usage or {}
        prompt_tokens = usage.get("prompt_tokens")
        return read_summary(answer, prompt_tokens if isinstance(prompt_tokens, int) else source.tokens)

    def room(self, request: TurnRequest, history: History, max_tokens: int) -> int:  # noqa: ARG002
        """No bound but the configured one: the API does not say how long its prompts may be."""
        return ANY

    async def _post(self, body: bytes) -> bytes:
        """One connection a request. Summaries are rare, and so nothing has to be closed later."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        timeout = ClientTimeout(total=self.timeout_s)
        async with (
            ClientSession(connector=TCPConnector(limit=1), timeout=timeout) as session,
            session.post(
                f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers, allow_redirects=False
            ) as reply,
        ):
            if reply.status != 200:
                raise _Unusable(f"it answered {reply.status}")
            answer = await read_body(reply, MAX_REPLY_BYTES)
            if answer is None:
                raise _Unusable(f"it answered more than {MAX_REPLY_BYTES} bytes")
            return answer

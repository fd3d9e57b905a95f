"""A summariser that never fails and shortens its input: evenly spread sentences of it, at most 400 tokens."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from bench.dialogues import Count

SUMMARY_TOKENS = 400
MAX_SHARE = 0.5
"""The longest summary, as a share of its input."""
MODEL = "summariser"


class Summariser:
    """``tokens``: read and written so far. ``url``: base URL for an OpenAI client, with its ``/v1``."""

    def __init__(self, count: Count) -> None:
        self.tokens = 0
        self.calls = 0
        self.url = ""
        self._count = count

    def summary(self, messages: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
        text = "\n".join(_text(message.get("content")) for message in messages)
        asked = self._count(text)
        said = shortened(text, min(SUMMARY_TOKENS / max(asked, 1), MAX_SHARE), max_tokens, self._count)
        answered = self._count(said)
        self.calls += 1
        self.tokens += asked + answered
        return {
            "id": f"summary-{self.calls}",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
        }


def shortened(text: str, share: float, max_tokens: int, count: Count) -> str:
    """Evenly spread sentences of a text, within the limit of tokens."""
    kept: list[str] = []
    due = tokens = 0.0
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        size = count(sentence)
        due += size * share
        if sentence and tokens + size / 2 <= due and tokens + size <= max_tokens:
            kept.append(sentence)
            tokens += size
    return " ".join(kept) or " ".join(text.split()[:20])


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


@asynccontextmanager
async def summarising(count: Count) -> AsyncIterator[Summariser]:
    """Runs the summariser on a free port of this machine."""
    summariser = Summariser(count)

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 2 * SUMMARY_TOKENS
        return web.json_response(summariser.summary(body["messages"], limit), dumps=json.dumps)

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    app = web.Application(client_max_size=32 << 20)
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        summariser.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield summariser
    finally:
        await runner.cleanup()

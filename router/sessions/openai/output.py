"""A chat completion that was not streamed → the response, and the message for the log. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.sessions.openai.answer import Outcome, ResponseAnswer
from router.sessions.openai.shapes import Head, response
from router.wire.completion import BadAnswer, read_whole


def translate(body: bytes, head: Head, completed_at: int) -> Outcome:
    """``body``: the worker's reply. One that is no completion gives a failed response. Linear."""
    answer = ResponseAnswer(head)
    try:
        completion, choice, message = read_whole(body)
        answer.usage = completion.usage
        answer.take(choice, message)
        return answer.finish(completed_at)
    except BadAnswer as error:
        return failed(head, {"code": "server_error", "message": str(error)})


def failed(head: Head, error: Mapping[str, Any]) -> Outcome:
    """``error``: as ``failure`` gives it."""
    return Outcome(response(head, "failed", error=dict(error)), [])

"""A chat completion that was not streamed → the response, and the message that the log shall keep. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.sessions.openai.answer import Outcome, ResponseAnswer
from router.sessions.openai.chat import BadAnswer, read_chat, whole_message
from router.sessions.openai.shapes import Head, response


def translate(body: bytes, head: Head, completed_at: int) -> Outcome:
    """``body``: the worker's, whatever it is; what is no completion gives a response that failed. Linear."""
    answer = ResponseAnswer(head)
    try:
        chat = read_chat(body)
        choice, message = whole_message(chat)
        for index, call in enumerate(message.tool_calls or ()):
            call.index = index
        answer.usage = chat.usage
        answer.take(choice, message)
        return answer.finish(completed_at)
    except BadAnswer as error:
        return failed(head, {"code": "server_error", "message": str(error)})


def failed(head: Head, error: Mapping[str, Any]) -> Outcome:
    """``error``: as ``failure`` gives it."""
    return Outcome(response(head, "failed", error=dict(error)), [])

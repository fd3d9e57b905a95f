"""Replies in vLLM's shapes: JSON bodies, SSE events, errors. Turns values into bytes, and touches no socket.

Each API has one class, and all classes have the methods of `Wire`. An answer's text arrives as the inside of a JSON
string and is put between prepared bytes, so only ids and counts are formatted for each event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

VLLM_VERSION = "0.32.0"
FINGERPRINT = b',"system_fingerprint":"vllm-%b-simulated"' % VLLM_VERSION.encode()
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


@dataclass(slots=True)
class Usage:
    """Tokens of one reply, summed over its choices. created_tokens: tokens of the blocks that it added to the cache."""

    prompt_tokens: int
    cached_tokens: int
    created_tokens: int
    completion_tokens: int

    def encode(self, *, tells_created: bool) -> bytes:
        details = b'{"cached_tokens":%d' % self.cached_tokens
        if tells_created:
            details += b',"created_cache_tokens":%d' % self.created_tokens
        return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":%b}}' % (
            self.prompt_tokens,
            self.prompt_tokens + self.completion_tokens,
            self.completion_tokens,
            details,
        )


@dataclass(frozen=True, slots=True)
class End:
    """The end of a choice. stop_reason: the string or the id that stopped it."""

    finish_reason: str
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Choice:
    """One finished choice of an unstreamed reply. Ids are None if the client did not ask for them."""

    text: bytes
    end: End
    prompt_ids: Sequence[int] | None = None
    ids: Sequence[int] | None = None


class Wire(Protocol):
    """One reply's bytes. `opening` belongs to a choice's first token, `closing` to the end of the last choice.

    `delta` is empty if vLLM sends no event: for tokens without text whose ids the client did not ask for.
    """

    def opening(self, choice: int, usage: Usage, prompt_ids: Sequence[int] | None) -> bytes: ...
    def delta(self, choice: int, text: bytes, ids: Sequence[int] | None, end: End | None) -> bytes: ...
    def closing(self, usage: Usage) -> bytes: ...
    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes: ...


def _ids(key: bytes, ids: Sequence[int] | None) -> bytes:
    return b',"%b":%b' % (key, _encode(ids)) if ids is not None else b""


def _finish_reason(end: End | None) -> bytes:
    return b"null" if end is None else b'"%b"' % end.finish_reason.encode()


def _stop_reason(end: End | None) -> bytes:
    return b"null" if end is None else _encode(end.stop_reason)


class ChatWire:
    """`/v1/chat/completions`. The fingerprint comes with the usage of a stream, or without usage at a choice's end."""

    def __init__(self, request_id: str, model: str, created_s: int, *, wants_usage: bool = False) -> None:
        self._wants_usage = wants_usage
        self._id = f"chatcmpl-{request_id}"
        self._model, self._created_s = model, created_s
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            _encode(self._id),
            created_s,
            _encode(model),
        )

    def opening(self, choice: int, usage: Usage, prompt_ids: Sequence[int] | None) -> bytes:
        del usage
        return (
            b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b}\n\n'
            % (
                self._head,
                choice,
                b"" if prompt_ids is None else _ids(b"prompt_token_ids", prompt_ids) + b',"prompt_text":null',
            )
        )

    def delta(self, choice: int, text: bytes, ids: Sequence[int] | None, end: End | None) -> bytes:
        if not text and ids is None and end is None:
            return b""
        return b'%b{"index":%d,"delta":{"content":"%b"},"logprobs":null,"finish_reason":%b%b%b}]%b}\n\n' % (
            self._head,
            choice,
            text,
            _finish_reason(end),
            b"" if end is None else b',"stop_reason":' + _stop_reason(end),
            _ids(b"token_ids", ids),
            b"" if end is None or self._wants_usage else FINGERPRINT,
        )

    def closing(self, usage: Usage) -> bytes:
        if not self._wants_usage:
            return DONE
        return b'%b],"usage":%b%b}\n\n' % (self._head, usage.encode(tells_created=True), FINGERPRINT) + DONE

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        bodies = [
            b'{"index":%d,"message":{"role":"assistant","content":"%b","refusal":null},'
            b'"logprobs":null,"finish_reason":%b,"stop_reason":%b%b}'
            % (
                index,
                choice.text,
                _finish_reason(choice.end),
                _stop_reason(choice.end),
                _ids(b"token_ids", choice.ids),
            )
            for index, choice in enumerate(choices)
        ]
        return b'{"id":%b,"object":"chat.completion","created":%d,"model":%b,"choices":[%b],"usage":%b%b%b}' % (
            _encode(self._id),
            self._created_s,
            _encode(self._model),
            b",".join(bodies),
            usage.encode(tells_created=True),
            FINGERPRINT,
            _ids(b"prompt_token_ids", choices[0].prompt_ids),
        )


class CompletionWire:
    """`/v1/completions`. Its usage has no created tokens."""

    def __init__(self, request_id: str, model: str, created_s: int, *, wants_usage: bool = False) -> None:
        self._wants_usage = wants_usage
        self._head = b'{"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[' % (
            _encode(f"cmpl-{request_id}"),
            created_s,
            _encode(model),
        )
        self._prompt_ids: dict[int, Sequence[int]] = {}

    def opening(self, choice: int, usage: Usage, prompt_ids: Sequence[int] | None) -> bytes:
        """Empty, since the first delta carries the prompt's ids."""
        del usage
        if prompt_ids is not None:
            self._prompt_ids[choice] = prompt_ids
        return b""

    def delta(self, choice: int, text: bytes, ids: Sequence[int] | None, end: End | None) -> bytes:
        prompt_ids = b""
        if ids is not None:
            prompt_ids = b',"prompt_token_ids":%b' % _encode(self._prompt_ids.pop(choice, None))
        return b'data: %b{"index":%d,"text":"%b","logprobs":null,"finish_reason":%b,"stop_reason":%b%b%b}]%b}\n\n' % (
            self._head,
            choice,
            text,
            _finish_reason(end),
            _stop_reason(end),
            prompt_ids,
            _ids(b"token_ids", ids),
            b"" if end is None or self._wants_usage else FINGERPRINT,
        )

    def closing(self, usage: Usage) -> bytes:
        if not self._wants_usage:
            return DONE
        return b'data: %b],"usage":%b%b}\n\n' % (self._head, usage.encode(tells_created=False), FINGERPRINT) + DONE

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        bodies = [
            b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":%b,"stop_reason":%b%b%b}'
            % (
                index,
                choice.text,
                _finish_reason(choice.end),
                _stop_reason(choice.end),
                _ids(b"prompt_token_ids", choice.prompt_ids),
                _ids(b"token_ids", choice.ids),
            )
            for index, choice in enumerate(choices)
        ]
        counts = usage.encode(tells_created=False)
        return b'%b%b],"usage":%b%b}' % (self._head, b",".join(bodies), counts, FINGERPRINT)


class MessagesWire:
    """`/v1/messages` with Anthropic's events: one choice, no token ids."""

    _STOP_REASONS = {"stop": b"end_turn", "length": b"max_tokens"}  # noqa: RUF012

    def __init__(self, request_id: str, model: str) -> None:
        self._id, self._model = _encode(f"chatcmpl-{request_id}"), _encode(model)

    def _message(self, content: bytes, stop: bytes, usage: bytes) -> bytes:
        return b'{"id":%b,"type":"message","role":"assistant","content":[%b],"model":%b,%b,"usage":%b}' % (
            self._id,
            content,
            self._model,
            stop,
            usage,
        )

    def _stop(self, end: End) -> bytes:
        """The stop fields. Anthropic has a separate reason for a stop string."""
        if isinstance(end.stop_reason, str):
            return b'"stop_reason":"stop_sequence","stop_sequence":%b' % _encode(end.stop_reason)
        return b'"stop_reason":"%b","stop_sequence":null' % self._STOP_REASONS[end.finish_reason]

    @staticmethod
    def _usage(usage: Usage) -> bytes:
        """The usage of an ended reply. Its three input counts add up to the prompt's tokens."""
        return (
            b'{"input_tokens":%d,"output_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d}'
            % (
                usage.prompt_tokens - usage.created_tokens - usage.cached_tokens,
                usage.completion_tokens,
                usage.created_tokens,
                usage.cached_tokens,
            )
        )

    def opening(self, choice: int, usage: Usage, prompt_ids: Sequence[int] | None) -> bytes:
        del choice, prompt_ids
        return (
            b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n'
            b"event: content_block_start\ndata: "
            b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
            % self._message(
                b"",
                b'"stop_reason":null,"stop_sequence":null',
                b'{"input_tokens":%d,"output_tokens":0}' % usage.prompt_tokens,
            )
        )

    def delta(self, choice: int, text: bytes, ids: Sequence[int] | None, end: End | None) -> bytes:
        del choice, ids
        if not text and end is None:
            return b""
        event = (
            b"event: content_block_delta\ndata: "
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}\n\n' % text
        )
        if end is None:
            return event
        self._end = end
        return event + b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'

    def closing(self, usage: Usage) -> bytes:
        return (
            b'event: message_delta\ndata: {"type":"message_delta","delta":{%b},'
            b'"usage":%b}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
            % (self._stop(self._end), self._usage(usage))
        )

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        content = b'{"type":"text","text":"%b"}' % choices[0].text
        return self._message(content, self._stop(choices[0].end), self._usage(usage))


def encode_error(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """vLLM's error body. Its code is the HTTP status as a number."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def encode_messages_error(message: str, kind: str) -> bytes:
    """The error body of `/v1/messages`: Anthropic's shape with vLLM's type and message."""
    return _encode({"type": "error", "error": {"type": kind, "message": message}})


def encode_error_event(status: int, message: str, kind: str) -> bytes:
    """The error event of a running stream, and the clean end that vLLM sends after it."""
    return b"data: %b\n\n" % encode_error(status, message, kind) + DONE

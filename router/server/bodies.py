"""Reads the bodies of requests within their limits, or leaves them unread and closes the connection after the answer."""

from __future__ import annotations

import asyncio
import contextlib
from io import BytesIO

from aiohttp import web

from router.config.serving import LimitsConfig
from router.core.errors import BodyTimeout, MalformedRequest, RequestTooLarge, RouterError
from router.core.tenants.memory import BODY, UNCOUNTED_BYTES, Holding
from router.server.protocol import LARGE_READ_BYTES, READ_BUFFER_BYTES, ClientProtocol
from router.wire.body_limits import BodyLimits
from router.wire.media import MediaRule

LINGER_S = 1.0
"""How long a refused body is read and dropped, so that a client that sends before it reads gets the answer and not a reset."""


MAX_FRAMING_BYTES = 4 << 10
FRAMING_RATIO = 1 / 16
"""Most bytes of a chunked body beside its payload: sizes, line ends, extensions, trailers. Chunks of 80 bytes and more pass. A
chunk costs 0.4 µs, however small it is."""


AHEAD_BYTES = 2 * READ_BUFFER_BYTES + LARGE_READ_BYTES
"""Bytes of a body that may be read before they are used: the amount at which reading pauses, and one read more."""


async def read_body(request: web.BaseRequest, limits: LimitsConfig, memory: Holding) -> bytes:
    """The body. It is counted in ``memory`` before it arrives. Raises BodyTimeout, MalformedRequest, RequestTooLarge,
    MemoryFull."""
    content = request.content
    if content.is_eof():  # most bodies come with their head
        body = content.read_nowait()
        require_room(len(body), limits)
        if len(body) > UNCOUNTED_BYTES:
            memory.grow(BODY, len(body))
        return body
    memory.grow(BODY, _bytes_ahead(request, 0))
    if request.headers.get("Expect") is not None and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if isinstance(request.protocol, ClientProtocol):
        request.protocol.begin_body()
    received, received_bytes = BytesIO(), 0  # a list of one-byte pieces would take forty times as much
    now = asyncio.get_running_loop().time
    started_at = now()
    due_at = started_at + min(limits.body_grace_s, limits.body_timeout_s)
    try:
        async with asyncio.timeout_at(due_at) as deadline:
            while piece := await content.readany():
                received_bytes += len(piece)
                require_room(received_bytes, limits)
                received.write(piece)
                memory.resize(BODY, received_bytes + _bytes_ahead(request, received_bytes))
                _check_framing(request, received_bytes)
                due_at = next_due_at(due_at, now(), len(piece), limits)
                deadline.reschedule(due_at)
    except TimeoutError:
        raise BodyTimeout(f"the body came too slowly: {received_bytes} bytes in {now() - started_at:.1f} s") from None
    except web.RequestPayloadError:
        raise MalformedRequest("the framing of the body is not valid HTTP") from None
    except RouterError:
        received.close()  # the error holds this frame until the client has read the answer
        raise
    memory.resize(BODY, received_bytes)
    return received.getvalue()


def next_due_at(due_at: float, now: float, piece_bytes: int, limits: LimitsConfig) -> float:
    """When the next piece of a body is due. Each byte earns time. At most ``body_timeout_s`` can be saved, so that a client
    that sent much at once cannot pause for long."""
    return min(due_at + piece_bytes / limits.min_body_bytes_per_s, now + limits.body_timeout_s)


def _bytes_ahead(request: web.BaseRequest, received_bytes: int) -> int:
    length = request.content_length
    return AHEAD_BYTES if length is None else min(AHEAD_BYTES, max(length - received_bytes, 0))


def body_limits(limits: LimitsConfig) -> BodyLimits:
    return BodyLimits(
        max_json_depth=limits.max_json_depth,
        max_messages=limits.max_messages,
        max_inputs=limits.max_inputs,
        max_choices=limits.max_choices,
        max_logprobs=limits.max_logprobs,
        max_stops=limits.max_stops,
        media=MediaRule(frozenset(map(str.lower, limits.allowed_media_domains))),
    )


def require_room(body_bytes: int, limits: LimitsConfig) -> None:
    """Raises RequestTooLarge."""
    if body_bytes > limits.max_body_bytes:
        raise RequestTooLarge(f"the body is larger than {limits.max_body_bytes} bytes")


def _check_framing(request: web.BaseRequest, payload_bytes: int) -> None:
    """Raises MalformedRequest for a body that is mostly chunk sizes, or extensions of them."""
    wire_bytes = request.protocol.wire_bytes if isinstance(request.protocol, ClientProtocol) else 0
    framing_bytes = wire_bytes - payload_bytes
    if framing_bytes > MAX_FRAMING_BYTES + FRAMING_RATIO * payload_bytes:
        raise MalformedRequest("the body's chunks are too small: send it in larger ones, or with its length")


async def answer_unread(request: web.BaseRequest, response: web.Response, linger_bytes: int) -> None:
    """Answer a request whose body is incomplete, drop up to ``linger_bytes`` of the rest, and close the connection."""
    response.force_close()
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()
    if linger_bytes and isinstance(request.protocol, ClientProtocol):
        await asyncio.wait((request.protocol.discard(linger_bytes),), timeout=LINGER_S)
    request.protocol.force_close()

"""Bodies that did not come with their head: read within their bounds, or left unread with the connection closed behind the
answer. A coroutine a body; the small ones that came with their head need none of this."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from router.config import LimitsConfig
from router.core.errors import BodyTimeout, MalformedRequest, Overloaded, RequestTooLarge

LARGE_BODY_BYTES = 512 << 10
"""Decoding more than this takes milliseconds, and so leaves the loop."""

LINGER_S = 1.0
"""How long the bytes of a refused body are taken in, so that a client which sends before it reads hears the answer and not
a reset."""


class BodyBudget:
    """What the bodies of all requests under way may take together. Each is held until its request ends, since another worker
    may have to be asked. Requests that come at once may each pass and exceed it by a body."""

    __slots__ = ("bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0

    def require_room(self, body_bytes: int) -> None:
        """For a body of so many bytes, 0 where nobody knows. Raises Overloaded."""
        if self.bytes + body_bytes > self.max_bytes:
            raise Overloaded("too many and too large requests are under way", retry_after_s=1)

    def take(self, body: bytes) -> int:
        """Its length, which is to be taken off again."""
        self.bytes += len(body)
        return len(body)


async def read_slow_body(request: web.BaseRequest, limits: LimitsConfig) -> bytes:
    """Raises BodyTimeout, MalformedRequest, RequestTooLarge, each before the bound is passed by more than one read."""
    if request.headers.get("Expect") is not None and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content, pieces, total_bytes = request.content, [], 0
    now = asyncio.get_running_loop().time
    started_at = now()
    try:
        async with asyncio.timeout(min(limits.body_grace_s, limits.body_timeout_s)) as deadline:
            while piece := await content.readany():
                pieces.append(piece)
                total_bytes += len(piece)
                if total_bytes > limits.max_body_bytes:
                    raise RequestTooLarge(f"the body is larger than {limits.max_body_bytes} bytes")
                earned_s = limits.body_grace_s + total_bytes / limits.min_body_bytes_per_s
                deadline.reschedule(started_at + min(earned_s, limits.body_timeout_s))
    except TimeoutError:
        raise BodyTimeout(f"the body came too slowly: {total_bytes} bytes in {now() - started_at:.1f} s") from None
    except web.RequestPayloadError:
        raise MalformedRequest("the request's body is not framed as HTTP is") from None
    return b"".join(pieces)


async def answer_unread(request: web.BaseRequest, response: web.Response, linger_bytes: int) -> None:
    """Answer a request whose body is not whole, take in at most ``linger_bytes`` of it, and close the connection."""
    response.force_close()
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()
    with contextlib.suppress(TimeoutError, web.RequestPayloadError):
        async with asyncio.timeout(LINGER_S):
            while linger_bytes > 0 and (piece := await request.content.readany()):
                linger_bytes -= len(piece)
    request.protocol.force_close()

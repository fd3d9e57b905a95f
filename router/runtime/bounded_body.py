"""Reads the body of an HTTP answer, up to a bound of bytes."""

from __future__ import annotations

from aiohttp import ClientResponse


async def read_body(reply: ClientResponse, max_bytes: int) -> bytes | None:
    """None where the body is longer than ``max_bytes``. Raises what aiohttp raises."""
    body = bytearray()
    async for part in reply.content.iter_any():
        body += part
        if len(body) > max_bytes:
            return None
    return bytes(body)

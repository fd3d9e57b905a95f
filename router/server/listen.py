"""Sockets and aiohttp servers, set up the way that both ports need them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from router.config import LimitsConfig
from router.core.errors import ClientError, HeadersTooLarge, InvalidRequest
from router.server.errors import error_response

SEND_BUFFER_BYTES = 128 << 10
"""What the kernel may hold for a client that does not read. Its own default hides megabytes from back-pressure."""

READ_BUFFER_BYTES = 128 << 10
BACKLOG = 4096

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def require_c_parser() -> None:
    """Raises RuntimeError where aiohttp would parse clients' bytes in Python, which is slower and has had its own holes."""
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError("aiohttp's C extensions are missing: install a wheel of aiohttp for this platform")


class _Protocol(web.RequestHandler):
    """Answers what cannot be parsed in the errors' own shape."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        error: ClientError = InvalidRequest("the request is not valid HTTP")
        if isinstance(exc, LineTooLong):
            error = HeadersTooLarge("a line of the request's head is too long")
        elif exc is not None and "Too many headers" in str(exc):
            error = HeadersTooLarge("the request has too many headers")
        response = error_response(error, None, "")
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, handler: Handler, **kwargs: Any) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._protocol_kwargs = kwargs

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._protocol_kwargs)


def make_server(handler: Handler, limits: LimitsConfig) -> web.Server:
    return _Server(
        handler,
        keepalive_timeout=limits.keepalive_s,
        max_line_size=limits.max_header_bytes,
        max_field_size=limits.max_header_bytes,
        max_headers=limits.max_headers,
        lingering_time=1.0,
        read_bufsize=READ_BUFFER_BYTES,
        auto_decompress=False,
        access_log=None,
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; accepted ones inherit its buffer sizes. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def tls_context(cert: str, key: str) -> ssl.SSLContext | None:
    if not cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context

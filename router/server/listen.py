"""Opens the listening sockets of both ports."""

from __future__ import annotations

import errno
import socket
import ssl

from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from router.config.schema import ConfigError
from router.config.serving import AdminConfig, ServerConfig

SEND_BUFFER_BYTES = 128 << 10
"""Size of the kernel's send buffer. Its default hides megabytes from back-pressure."""

BACKLOG = 4096


def require_c_parser() -> None:
    """Raises RuntimeError if aiohttp would parse requests in Python. That parser is slower and has had vulnerabilities of its
    own."""
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError("aiohttp's C extensions are missing: install a wheel of aiohttp for this platform")


def listen(section: str, where: ServerConfig | AdminConfig) -> socket.socket:
    """A listening socket. Accepted sockets inherit its buffer sizes. ``section`` is the configuration's. Raises ConfigError."""
    try:
        return _bound(where.host, where.port)
    except OSError as error:
        is_ports = error.errno in (errno.EADDRINUSE, errno.EACCES)
        key = f"{section}.port={where.port}" if is_ports else f"{section}.host={where.host!r}"
        reason = error.strerror or error
        raise ConfigError(f"{key}: cannot listen on port {where.port} of {where.host}: {reason}") from None


def _bound(host: str, port: int) -> socket.socket:
    """Raises OSError."""
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


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context

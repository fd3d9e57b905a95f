"""Socket options of connections to workers."""

from __future__ import annotations

import socket

KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 11_000))
"""A host that vanishes sends no FIN. These options report it after eleven seconds, where the system has them."""

RECEIVE_BUFFER_BYTES = 64 << 10
"""Size of the kernel's buffer, which the kernel doubles. One read takes all of it, and a client that stops reading leaves that
much in our memory."""


def prepare(sock: socket.socket) -> None:
    """Set the options of a connection to a worker."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

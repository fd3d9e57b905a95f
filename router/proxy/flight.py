"""One request on its way, and a stream of it that broke."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.fleet.member import Member
from router.core.request.attempt import Failure
from router.core.request.poison_guard import PoisonGuard
from router.core.request.record import Record
from router.core.request.reply import StreamEnd
from router.core.request.request import Request
from router.proxy.ports import Client
from router.wire.sse import StreamFilter
from router.wire.transcript import Transcript

CAUSES = {
    StreamEnd.DIED: Failure.DIED,
    StreamEnd.SILENT: Failure.TIMEOUT,
    StreamEnd.SLOW: Failure.TIMEOUT,
    StreamEnd.ERRED: Failure.ERROR,
}
"""Ends of a stream that another worker may continue; the value is a label of the resumption counter."""


@dataclass(slots=True)
class Flight:
    """One request on its way."""

    request: Request
    client: Client
    record: Record
    transcript: Transcript | None
    """The part of a stream that the client has, if other workers can continue the stream."""
    poison_guard: PoisonGuard


@dataclass(frozen=True, slots=True)
class Break:
    """A stream that broke after its first event."""

    member: Member
    end: StreamEnd
    stream_filter: StreamFilter

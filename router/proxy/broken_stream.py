"""The end of a stream that broke, as the client saw it: its last events, or what another worker has to continue."""

from __future__ import annotations

from router.proxy.flight import Break, Flight
from router.wire.completion import BadAnswer
from router.wire.continuation import Asked, Unsafe, read_asked, require_plain
from router.wire.continued import usage_event
from router.wire.transcript import Delivered, Transcript


def finish(flight: Flight, broken: Break) -> None:
    """The whole answer came, and only the events after it are missing: no worker is needed. Raises Unsafe."""
    request, stream_filter = flight.request, broken.stream_filter
    events = stream_filter.rest()
    if stream_filter.transcript is not None and stream_filter.usage is None and not request.hides_usage:
        events += usage_event(request.route, _read(stream_filter.transcript))
    flight.client.end_stream(events + stream_filter.dialect.closing_event)


def _read(transcript: Transcript) -> Delivered:
    """Raises Unsafe."""
    try:
        return transcript.delivered()
    except BadAnswer:
        raise Unsafe("parsed") from None


def plan(flight: Flight, broken: Break) -> tuple[Asked, Delivered]:
    """The request, and what the client has of its answer. Raises Unsafe."""
    request, transcript = flight.request, broken.stream_filter.transcript
    if transcript is None:
        raise Unsafe("route")
    if transcript.is_lost:
        raise Unsafe("length")
    asked = read_asked(request.route, request.body, wants_usage=not request.hides_usage, hides_ids=request.hides_ids)
    delivered = _read(transcript)
    require_plain(delivered)
    return asked, delivered

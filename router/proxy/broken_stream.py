"""A stream that broke: its last events, or the request with which another worker continues it."""

from __future__ import annotations

import msgspec

from router.core.request.request import Request
from router.core.request.routes import Route
from router.proxy.flight import Break, Flight
from router.wire.completion import BadAnswer
from router.wire.continuation import Asked, Seam, Unsafe, exact_body, read_asked, require_plain, text_body
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


def rest_of(
    request: Request, asked: Asked, delivered: Delivered, seam: Seam | None, max_model_len: int | None
) -> Request:
    """The request for the rest of the answer. An answer without any text yet is asked for anew, so that the worker's parsers
    run as usual. Raises Unsafe."""
    if not delivered.text:
        return request
    if seam is None:
        return msgspec.structs.replace(request, body=text_body(asked, delivered))
    body = exact_body(asked, delivered, seam, max_model_len)
    return msgspec.structs.replace(request, route=Route.COMPLETIONS, body=body)

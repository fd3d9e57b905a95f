"""Settings → a tracer and the sender behind it. The only module of this room that is imported where tracing is off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.config.schema import ConfigError
from router.config.serving import TracingConfig
from router.tracing.metrics import TraceCounts

if TYPE_CHECKING:
    from router.tracing.otlp import TraceSender
    from router.tracing.tracer import Tracer


FLUSH_S = 2.0
"""Time for the last spans when the router stops."""


@dataclass(frozen=True, slots=True)
class Tracing:
    tracer: Tracer
    sender: TraceSender


def open_tracing(
    config: TracingConfig,
    resource: Mapping[str, str],
    is_known: Callable[[str], bool],
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    counts: TraceCounts,
) -> Tracing | None:
    """None where tracing is off. Raises ConfigError where the extra is missing."""
    if not config.endpoint:
        return None
    try:
        from router.tracing.otlp import TraceExporter, TraceSender, otlp_exporter
        from router.tracing.tracer import Tracer
    except ImportError:
        raise ConfigError(f"tracing.endpoint={config.endpoint!r}: needs the extra warmroute[otel]") from None
    otlp = otlp_exporter(config)
    resource = {"service.name": config.service_name, **resource}
    exporter = TraceExporter(otlp.export, otlp.shutdown, resource, is_known, lambda: wall_clock() - clock(), counts)
    sender = TraceSender(exporter, counts)
    return Tracing(Tracer(config.sample_ratio, clock, sender.put), sender)


@asynccontextmanager
async def sending(tracing: Tracing | None) -> AsyncIterator[None]:
    """Traces that wait at the end of the block are sent within ``FLUSH_S``."""
    try:
        yield
    finally:
        if tracing is not None:
            await tracing.sender.close(FLUSH_S)

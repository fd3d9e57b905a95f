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
    counts.max_traces = config.max_queue
    otlp = otlp_exporter(config)
    resource = {"service.name": config.service_name, **resource}
    exporter = TraceExporter(otlp.export, otlp.shutdown, resource, is_known, lambda: wall_clock() - clock(), counts)
    sender = TraceSender(config, exporter, counts)
    return Tracing(Tracer(config.sample_ratio, clock, sender.put), sender)


@asynccontextmanager
async def sending(tracing: Tracing | None, flush_s: float) -> AsyncIterator[None]:
    """Traces that wait at the end of the block are sent within ``flush_s``."""
    try:
        yield
    finally:
        if tracing is not None:
            await tracing.sender.close(flush_s)

"""Settings → a tracer, and the queue behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from router.config.schema import ConfigError
from router.config.serving import TracingConfig
from router.tracing.queue import TraceQueue
from router.tracing.tracer import Tracer


@dataclass(frozen=True, slots=True)
class Tracing:
    tracer: Tracer
    queue: TraceQueue


def open_tracing(
    config: TracingConfig,
    resource: Mapping[str, str],
    is_known: Callable[[str], bool],
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    bits: Callable[[int], int],
) -> Tracing | None:
    """None where tracing is off. Raises ConfigError where the extra is missing."""
    if not config.endpoint:
        return None
    try:
        from router.tracing.otlp import OtlpSender
    except ImportError:
        raise ConfigError(f"tracing.endpoint={config.endpoint!r}: needs the extra warmroute[otel]") from None
    headers = dict(each.split("=", 1) for each in config.headers)
    sender = OtlpSender(
        config.endpoint,
        headers,
        config.timeout_s,
        {"service.name": config.service_name, **resource},
        is_known,
        lambda: wall_clock() - clock(),
    )
    queue = TraceQueue(sender.send, sender.stop, config.max_queue, config.interval_s)
    return Tracing(Tracer(config.sample_ratio, bits, clock, queue.put), queue)


@asynccontextmanager
async def sending(tracing: Tracing | None, flush_s: float) -> AsyncIterator[None]:
    """Traces are sent inside the block, and what waits at its end within ``flush_s`` behind it."""
    if tracing is None:
        yield
        return
    tracing.queue.start()
    try:
        yield
    finally:
        await tracing.queue.close(flush_s)

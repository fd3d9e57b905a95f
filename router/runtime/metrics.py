"""Metrics whose figures are kept elsewhere: rows that are read when Prometheus asks, so that requests do not pay for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from router.runtime.background import Background

PREFIX = "warmroute_"

MAX_LABEL_VALUES, OTHER = 1000, "other"
"""Values of a label that clients choose, and the value of all beyond."""

Values = float | Mapping[Any, float]
"""One figure, or figures by a label's value, or by a tuple of several labels' values."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. ``name`` has no prefix, and a counter's no ``_total``."""

    name: str
    help: str
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    labels: tuple[str, ...]
    read: Callable[[], Values]


def gauge(name: str, text: str, read: Callable[[], Values], *labels: str) -> Row:
    return Row(name, text, GaugeMetricFamily, labels, read)


def counter(name: str, text: str, read: Callable[[], Values], *labels: str) -> Row:
    return Row(name, text, CounterMetricFamily, labels, read)


class Table(Collector):
    """Rows as a registry takes them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    def collect(self) -> Iterator[Metric]:
        for row in self._rows:
            family = row.kind(PREFIX + row.name, row.help, labels=row.labels)
            values = row.read()
            for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
                family.add_metric((labels,) if isinstance(labels, str) else labels, value)
            yield family


def register(registry: CollectorRegistry, *tables: Iterable[Row]) -> None:
    for rows in tables:
        registry.register(Table(rows))


class Exposition:
    """The text that Prometheus reads. ``flush`` is called before each scrape."""

    def __init__(self, registry: CollectorRegistry, flush: Callable[[], None]) -> None:
        self._registry = registry
        self._flush = flush
        self._scraping = asyncio.Lock()

    async def read(self) -> tuple[bytes, str]:
        """The text and its content type. The event loop serves others between two families, and a thread writes the text. There
        is one scrape at a time."""
        async with self._scraping:
            self._flush()
            families = []
            for family in self._registry.collect():
                families.append(family)
                await asyncio.sleep(0)
            return await asyncio.to_thread(generate_latest, _Collected(families)), CONTENT_TYPE_LATEST


class _Collected(CollectorRegistry):
    """Families that were read already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def background_rows(background: Background) -> Iterable[Row]:
    return [
        counter(
            "background_failures",
            "Background tasks that failed and were started again, by task. The log has each error.",
            lambda: background.failures,
            "task",
        )
    ]

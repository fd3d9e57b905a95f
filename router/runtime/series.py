"""Makes Prometheus series of counts that are kept elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily


def counter(
    name: str, text: str, values: Mapping[str, float] | Mapping[tuple[str, str], int], *labels: str
) -> CounterMetricFamily:
    """``values`` by the label's value, or by the values of two labels."""
    family = CounterMetricFamily(f"warmroute_{name}", text, labels=labels)
    for value, count in values.items():
        family.add_metric((value,) if isinstance(value, str) else value, count)
    return family

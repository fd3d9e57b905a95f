"""Tables of metrics: figures without labels, by one label, and by several, read when Prometheus asks."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from router.runtime.metrics import counter, gauge, register


def test_rows_are_read_when_prometheus_asks() -> None:
    registry = CollectorRegistry()
    figures = {"size": 1}
    register(registry, [gauge("size", "The size.", lambda: figures["size"])])
    assert registry.get_sample_value("warmroute_size") == 1
    figures["size"] = 2
    assert registry.get_sample_value("warmroute_size") == 2


def test_figures_have_as_many_labels_as_their_row() -> None:
    registry = CollectorRegistry()
    register(
        registry,
        [counter("causes", "By cause.", lambda: {"died": 3}, "cause")],
        [counter("turns", "By API and outcome.", lambda: {("sessions", "ok"): 4}, "api", "outcome")],
    )
    assert registry.get_sample_value("warmroute_causes_total", {"cause": "died"}) == 3
    assert registry.get_sample_value("warmroute_turns_total", {"api": "sessions", "outcome": "ok"}) == 4


def test_a_row_without_figures_is_a_metric_without_series() -> None:
    registry = CollectorRegistry()
    register(registry, [gauge("tenant_size", "By tenant.", dict, "tenant")])
    (family,) = registry.collect()
    assert (family.name, family.documentation, family.samples) == ("warmroute_tenant_size", "By tenant.", [])

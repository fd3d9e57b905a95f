"""How the dashboards ask: each function makes PromQL of a metric's name without its prefix, of the routers that were chosen."""

from __future__ import annotations

from grafana.panels import RATE, SELECTOR


def series(metric: str, *matchers: str) -> str:
    return f"warmroute_{metric}{{{','.join((SELECTOR, *matchers))}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """Of a counter, a second, summed."""
    return total(f"rate({series(metric, *matchers)}[{RATE}])", by)


def increase(metric: str, *matchers: str, by: str = "") -> str:
    """Of a counter, over the time that is shown."""
    return total(f"increase({series(metric, *matchers)}[$__range])", by)


def total(expr: str, by: str = "") -> str:
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


def now(metric: str, *matchers: str, by: str = "") -> str:
    """Of a gauge, summed over routers."""
    return total(series(metric, *matchers), by)


def worst(metric: str, *matchers: str, by: str = "") -> str:
    """Of a gauge, the largest."""
    expr = series(metric, *matchers)
    return f"max by ({by}) ({expr})" if by else f"max({expr})"


def quantile(share: float, metric: str, *matchers: str, by: str = "") -> str:
    """Of a histogram, over all routers."""
    buckets = rate(f"{metric}_bucket", *matchers, by=", ".join(filter(None, ("le", by))))
    return f"histogram_quantile({share}, {buckets})"


def share(part: str, whole: str) -> str:
    """Nothing where the whole is nothing."""
    return f"{part} / ({whole} > 0)"

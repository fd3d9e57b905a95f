"""Recorded series: what alerts go by, a deployment each. Nothing where there was no traffic."""

from __future__ import annotations

from grafana.boards.latency import GOOD_S
from grafana.queries import share

WINDOWS = ("5m", "30m", "1h", "6h")
LONG = ("1h", "6h")
"""Of those, the windows that are long enough to count in."""

OF = "namespace, job"
"""What a deployment is: jobs of two namespaces may have one name. Outside Kubernetes the first is empty."""

CUT_OFF = 'outcome=~"unsafe|failed"'
"""Streams that left their clients with half an answer, under the status 200."""


def rate(metric: str, window: str, *matchers: str) -> str:
    return f"sum by ({OF}) (rate(warmroute_{metric}{{{','.join(matchers)}}}[{window}]))".replace("{}", "")


def _failed(window: str) -> str:
    """A second: requests that ended with a 5xx, and streams that were cut off."""
    nothing = f"0 * {rate('requests_total', window)}"
    errors = rate("requests_total", window, 'status=~"5.."')
    cut_off = rate("resumptions_total", window, CUT_OFF)
    return f"({errors} or {nothing}) + ({cut_off} or {nothing})"


def _slow(window: str) -> str:
    soon = rate("time_to_first_token_seconds_bucket", window, f'le="{GOOD_S}"')
    return f"{rate('time_to_first_token_seconds_count', window)} - {soon}"


RECORDED = {
    **{
        f"warmroute:errors:ratio_rate{window}": share(f"({_failed(window)})", rate("requests_total", window))
        for window in WINDOWS
    },
    **{
        f"warmroute:slow_first_tokens:ratio_rate{window}": share(
            f"({_slow(window)})", rate("time_to_first_token_seconds_count", window)
        )
        for window in WINDOWS
    },
    **{f"warmroute:errors:rate{long}": _failed(long) for long in LONG},
    **{f"warmroute:slow_first_tokens:rate{long}": _slow(long) for long in LONG},
    "warmroute:cached_tokens:ratio_rate30m": share(
        rate("actual_cached_tokens_total", "30m"), rate("prompt_tokens_total", "30m")
    ),
    "warmroute:requests:rate30m": rate("requests_total", "30m"),
    "warmroute:worker_requests:rate15m": f"sum by ({OF}, worker) (rate(warmroute_worker_requests_total[15m]))",
}

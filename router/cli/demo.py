"""Shows in under a minute what prefix-aware routing changes, on one machine, without a GPU or network.

Each policy gets a fresh simulated fleet, a router before it, and the bundled trace. The caller decides how to start a
router.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from router.replay import ReplayReport, ReplaySettings, replay
from router.simulator import SimulatorSettings, start_fleet

StartRouter = Callable[[str, Sequence[str]], AbstractAsyncContextManager[str]]
"""Policy name and worker URLs → the router's URL, while the context is open."""

# Four medium GPUs: busy, but not overloaded even if every prompt is computed in full.
DEMO_FLEET = SimulatorSettings(
    workers=4, base_port=0, cache_blocks=1000, block_tokens=512, prefill_rate=8000, time_scale=10
)


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """policies: the first is the baseline of the comparison. trace: None takes the bundled trace."""

    policies: tuple[str, ...] = ("round_robin", "cache_aware")
    fleet: SimulatorSettings = field(default=DEMO_FLEET)
    trace: Path | None = None


async def demo(settings: DemoSettings, start_router: StartRouter, console: Console) -> dict[str, ReplayReport]:
    """Run the policies one after another and print the comparison. Returns policy → report, in order."""
    fleet = settings.fleet
    console.print(
        f"{fleet.workers} simulated workers of {fleet.cache_blocks * fleet.block_tokens:,} cached and "
        f"{fleet.prefill_rate:,.0f} prefilled tokens/s each; time runs {fleet.time_scale:g} times as fast.",
        highlight=False,
    )
    reports = {}
    with _trace_file(settings) as trace, _progress(console) as progress:
        for policy in settings.policies:
            reports[policy] = await _run(settings, policy, trace, start_router, progress)
    console.print(compare(reports))
    return reports


async def _run(
    settings: DemoSettings, policy: str, trace: Path, start_router: StartRouter, progress: Progress
) -> ReplayReport:
    task = progress.add_task(policy, total=None)
    async with aclosing(await start_fleet(settings.fleet)) as fleet:
        workers = tuple(fleet.urls)
        async with start_router(policy, workers) as url:
            return await replay(
                ReplaySettings(
                    trace,
                    (url,),
                    time_scale=settings.fleet.time_scale,
                    block_tokens=settings.fleet.block_tokens,
                    worker_urls=workers,
                ),
                lambda ended, total: progress.update(task, completed=ended, total=total),
            )


def compare(reports: Mapping[str, ReplayReport]) -> Table:
    """One column for each policy, and the ratio of the first to the last. Expects at least one report."""
    table = Table(title="time to first token, in the workers' seconds", title_justify="left")
    table.add_column(style="bold")
    for policy in reports:
        table.add_column(policy, justify="right")
    table.add_column("ratio", justify="right")
    found = list(reports.values())
    for name, percentile in (("mean", "mean"), ("median", "p50"), ("p90", "p90"), ("p99", "p99")):
        seconds = [float(getattr(report.ttft, percentile)) for report in found]
        ratio = f"{seconds[0] / seconds[-1]:.2f} x" if seconds[-1] else "unknown"
        table.add_row(name, *(f"{value:.2f} s" for value in seconds), ratio)
    table.add_section()
    hits = ["unknown" if report.hit_ratio is None else f"{report.hit_ratio:.1%}" for report in found]
    table.add_row("cache hits", *hits)
    table.add_row("busiest worker / mean", *(f"{report.imbalance:.2f}" for report in found))
    table.add_row("answered", *(f"{report.answered} of {report.requests}" for report in found))
    warnings = sorted({warning for report in found for warning in report.warnings})
    table.caption = "\n".join(warnings) or None
    return table


@contextmanager
def _trace_file(settings: DemoSettings) -> Iterator[Path]:
    if settings.trace is not None:
        yield settings.trace
        return
    with as_file(files("router.cli") / "demo-trace.jsonl") as path:
        yield path


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )

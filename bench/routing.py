"""Policies compared over real HTTP: simulated fleet, router and load run as separate processes.

    python bench/routing.py conversation coding --traces DIR
    python bench/routing.py decode-heavy --policies cache_aware,least_loaded

A policy is NAME or NAME:BOUND (prefix_ring's bounded loads; without BOUND there is no bound). With @N there are N routers
that share nothing, and each gets a random part of the requests. Every run has a new fleet and new routers, so that it
starts cold. Results go to bench/results/routing-SCENARIO.json; a table and the targets' verdicts go to standard output.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import IO, Any

import aiohttp
import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.provenance import RESULTS, ROOT, commit, machine
from router.replay import ReplayError, ReplayReport, ReplaySettings, replay

WORKERS = 8
TIME_SCALE = 20.0
PREFILL_RATE = 15_000
POLL_INTERVAL_S = 0.05
READY_S = 60.0
STOP_S = 20.0


class BenchError(Exception):
    """The benchmark cannot run. The text is one line for the user."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One thing to compare: a policy, its bound if it has one, and the number of routers."""

    policy: str
    ring_bound: float | None
    routers: int

    @classmethod
    def parse(cls, text: str) -> "Variant":
        found = re.fullmatch(r"([a-z_]+)(?::([\d.]+))?(?:@(\d+))?", text)
        if found is None:
            raise BenchError(f"{text!r}: a policy is NAME, NAME:BOUND or either with @ROUTERS")
        name, bound, routers = found.groups()
        is_ring = name == "prefix_ring"
        return cls(name, float(bound or 0) if is_ring else None, int(routers or 1))

    @property
    def environment(self) -> dict[str, str]:
        found = {
            "WARMROUTE_LOAD__POLL_INTERVAL_S": str(POLL_INTERVAL_S),
            "WARMROUTE_ADMISSION__MAX_WORKER_REQUESTS": "0",  # a policy that overloads its workers shall be seen to
        }
        if self.ring_bound is not None:
            found["WARMROUTE_POLICY__RING_BOUND"] = str(self.ring_bound)
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one variant: the median over its runs. TTFT in trace seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    hits: float
    imbalance: float
    errors: float
    lateness_ms: float
    router_cores: float
    fleet_cores: float
    machine_cores: float

    @classmethod
    def of(cls, runs: Sequence["Run"]) -> "Figures":
        """The medians of a variant's runs. The busiest router's cores stand for all routers."""
        rows = [
            (
                report.ttft.mean,
                report.ttft.p50,
                report.ttft.p90,
                report.ttft.p99,
                report.hit_ratio or 0.0,
                report.imbalance,
                report.requests - report.answered,
                report.lateness_wall_s * 1000,
                max(cores for name, cores in run.cores.items() if name.startswith("serve")),
                run.cores["simulate"],
                run.cores["machine"],
            )
            for run in runs
            for report in (run.report,)
        ]
        return cls(*(median(column) for column in zip(*rows, strict=True)))


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """is_met: None if a policy of the target was not run."""

    target: str
    value: float | None
    is_met: bool | None


Found = Mapping[str, Figures]


def at_most(target: str, bound: float, measure: Callable[[Found], float]) -> Callable[[Found], Verdict]:
    return lambda found: _verdict(target, found, measure, lambda value: value <= bound)


def at_least(target: str, bound: float, measure: Callable[[Found], float]) -> Callable[[Found], Verdict]:
    return lambda found: _verdict(target, found, measure, lambda value: value >= bound)


def _verdict(target: str, found: Found, measure: Callable[[Found], float], holds: Callable[[float], bool]) -> Verdict:
    try:
        value = measure(found)
    except (KeyError, ValueError, ZeroDivisionError):
        return Verdict(target, None, None)
    return Verdict(target, value, holds(value))


def _over_better_ring(found: Found) -> float:
    return found["cache_aware"].mean / min(found["prefix_ring"].mean, found["prefix_ring:1.25"].mean)


def _four_over_one(found: Found) -> float:
    return found["cache_aware@4"].mean / found["cache_aware@1"].mean


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """trace: a file in the directory of traces; empty: made here. repeats: runs of a variant; their median counts."""

    trace: str
    policies: tuple[str, ...]
    targets: tuple[Callable[[Found], Verdict], ...] = ()
    speed: float = 2.0
    limit: int | None = None
    block_tokens: int = 512
    cache_blocks: int = 3000
    repeats: int = 1


ALL = ("round_robin", "least_loaded", "prefix_ring", "prefix_ring:1.25", "cache_aware")
REPLICAS = ("cache_aware@1", "cache_aware@4")
REPLICA_TARGETS = (
    at_most("four routers' mean TTFT / one's <= 1.6", 1.6, _four_over_one),
    at_most("four routers' mean TTFT / one's <= 1.25 (goal)", 1.25, _four_over_one),
)
CONVERSATION, CODING = "mooncake-conversation.jsonl.xz", "coding-agents.jsonl.xz"

SCENARIOS = {
    "conversation": Scenario(
        CONVERSATION,
        ALL,
        (
            at_most("mean TTFT / round_robin's <= 0.45", 0.45, lambda f: f["cache_aware"].mean / f["round_robin"].mean),
            at_most("mean TTFT / better ring's <= 0.6", 0.6, _over_better_ring),
            at_least("hit ratio >= 0.26", 0.26, lambda f: f["cache_aware"].hits),
        ),
    ),
    "coding": Scenario(
        CODING,
        ("prefix_ring", "prefix_ring:1.25", "cache_aware"),
        (
            at_least("hit ratio >= 0.92", 0.92, lambda f: f["cache_aware"].hits),
            at_most("mean TTFT / better ring's <= 0.7", 0.7, _over_better_ring),
        ),
        limit=3000,
    ),
    "ragpulse": Scenario(
        "ragpulse.jsonl.xz",
        ALL,
        (
            at_most("p99 TTFT / round_robin's <= 1.1", 1.1, lambda f: f["cache_aware"].p99 / f["round_robin"].p99),
            at_most("busiest worker / mean <= 1.3", 1.3, lambda f: f["cache_aware"].imbalance),
        ),
        speed=2000.0,
        block_tokens=16,
        cache_blocks=12_000,
        repeats=3,
    ),
    "replicas-conversation": Scenario(CONVERSATION, REPLICAS, REPLICA_TARGETS),
    "replicas-coding": Scenario(CODING, REPLICAS, REPLICA_TARGETS, limit=3000),
    "decode-heavy": Scenario(
        "",
        ("round_robin", "least_loaded", "cache_aware"),
        (at_most("mean TTFT / least_loaded's <= 1", 1.0, lambda f: f["cache_aware"].mean / f["least_loaded"].mean),),
        speed=1.0,
    ),
    "synthetic": Scenario("mooncake-synthetic.jsonl.xz", ALL),
    "arxiv": Scenario("mooncake-arxiv-1000.jsonl.xz", ALL),
    "azure": Scenario("azure-code-2023.jsonl.xz", ALL),
}


class CpuMeter:
    """Cores that each of our processes and the whole machine use. A process without CPU gives worthless figures."""

    def __init__(self) -> None:
        self._processes = [("load", psutil.Process())]
        self._before: list[float] = []
        self._began = 0.0

    def add(self, name: str, pid: int) -> None:
        self._processes.append((name, psutil.Process(pid)))

    def start(self) -> None:
        self._before, self._began = self._seconds(), time.monotonic()

    def read(self) -> dict[str, float]:
        """Process name or `machine` → mean cores since `start`. Routers are numbered."""
        wall_s = time.monotonic() - self._began
        spent = [after - before for before, after in zip(self._before, self._seconds(), strict=True)]
        names = [name for name, _ in self._processes]
        labels = [f"{name} {at}" if names.count(name) > 1 else name for at, name in enumerate(names)]
        return {name: round(cpu_s / wall_s, 3) for name, cpu_s in zip([*labels, "machine"], spent, strict=True)}

    def _seconds(self) -> list[float]:
        times = [process.cpu_times() for _, process in self._processes]
        machine = psutil.cpu_times()
        return [
            *(one.user + one.system for one in times),
            sum(machine) - machine.idle - getattr(machine, "iowait", 0.0),
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One replay, and the CPU time of each process."""

    report: ReplayReport
    cores: dict[str, float]


@asynccontextmanager
async def process(
    arguments: Sequence[str], environment: Mapping[str, str], log: IO[str], meter: CpuMeter
) -> AsyncIterator[Process]:
    """One command, its errors in `log`. It is terminated at the end, and killed if it does not stop."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router", *arguments, env={**_clean_environment(), **environment}, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=log,
    )  # fmt: skip
    meter.add(arguments[0], child.pid)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()


def _clean_environment() -> dict[str, str]:
    """The environment without variables that would configure the routers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WARMROUTE_")}


def simulate_arguments(scenario: Scenario, base_port: int = 0) -> list[str]:
    flags = {
        "workers": WORKERS,
        "base-port": base_port,
        "cache-blocks": scenario.cache_blocks,
        "block-tokens": scenario.block_tokens,
        "prefill-rate": PREFILL_RATE,
        "time-scale": f"{TIME_SCALE:g}",
    }
    return ["simulate", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]


def serve_arguments(variant: Variant, ports: tuple[int, int], workers: Sequence[str]) -> list[str]:
    arguments = ["serve", "--port", str(ports[0]), "--admin-port", str(ports[1]), "--policy", variant.policy]
    return [*arguments, "--insecure-no-auth", *(part for url in workers for part in ("--worker", url))]


def free_ports(count: int) -> list[int]:
    """Free ports. All are held at the same time, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@asynccontextmanager
async def fleet_of(scenario: Scenario, log: IO[str], meter: CpuMeter) -> AsyncIterator[list[str]]:
    async with process(simulate_arguments(scenario), {}, log, meter) as child:
        output = child.stdout
        assert output is not None
        try:
            async with asyncio.timeout(READY_S):
                lines = [(await output.readline()).decode().strip() for _ in range(WORKERS)]
        except TimeoutError:
            raise BenchError("the simulated fleet did not start") from None
        if not all(line.startswith("http") for line in lines):
            raise BenchError("the simulated fleet did not start")
        yield lines


@asynccontextmanager
async def routers_of(
    variant: Variant, workers: Sequence[str], extra: Mapping[str, str], log: IO[str], meter: CpuMeter
) -> AsyncIterator[list[str]]:
    ports = free_ports(2 * variant.routers)
    pairs = list(zip(ports[::2], ports[1::2], strict=True))
    environment = {"WARMROUTE_SESSIONS__STORE": "memory://", **variant.environment, **extra}
    async with AsyncExitStack() as stack, aiohttp.ClientSession() as session:
        children = [
            await stack.enter_async_context(process(serve_arguments(variant, pair, workers), environment, log, meter))
            for pair in pairs
        ]
        for child, (data, admin) in zip(children, pairs, strict=True):
            await _wait_ready(session, child, f"http://127.0.0.1:{data}", f"http://127.0.0.1:{admin}")
        yield [f"http://127.0.0.1:{data}" for data, _ in pairs]


async def _wait_ready(session: aiohttp.ClientSession, child: Process, url: str, admin_url: str) -> None:
    """Waits for all workers. /ready is true with one of them, which would not be a fair start."""
    try:
        async with asyncio.timeout(READY_S):
            while child.returncode is None:
                try:
                    async with session.get(f"{url}/ready") as answer:
                        is_ready = answer.status == 200
                    async with session.get(f"{admin_url}/workers") as answer:
                        states = [worker.get("state") for worker in (await answer.json())["workers"]]
                    if is_ready and states == ["up"] * WORKERS:
                        return
                except (aiohttp.ClientError, KeyError):
                    pass
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise BenchError("a router did not become ready") from None
    raise BenchError("a router did not start")


async def run_once(
    scenario: Scenario,
    variant: Variant,
    trace: Path,
    extra: Mapping[str, str],
    seed: int,
    progress: Progress,
    name: str,
) -> Run:
    task = progress.add_task(name, total=None)
    meter = CpuMeter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            async with (
                fleet_of(scenario, log, meter) as workers,
                routers_of(variant, workers, extra, log, meter) as urls,
            ):
                settings = ReplaySettings(
                    trace,
                    tuple(urls),
                    speed=scenario.speed,
                    time_scale=TIME_SCALE,
                    limit=scenario.limit,
                    block_tokens=scenario.block_tokens,
                    worker_urls=tuple(workers),
                    seed=seed,
                )
                meter.start()
                report = await replay(
                    settings, lambda ended, total: progress.update(task, completed=ended, total=total)
                )
                return Run(report, meter.read())
        except BenchError as error:
            log.seek(0)
            raise BenchError(f"{name}: {error}\n{log.read()[-2000:]}") from None


async def run_scenario(
    name: str, policies: Sequence[str], traces: Path, repeats: int | None, extra: Mapping[str, str], console: Console
) -> bool:
    """Runs, prints and writes one scenario. False if a target was missed."""
    scenario = SCENARIOS[name]
    if repeats is not None:
        scenario = dataclasses.replace(scenario, repeats=repeats)
    begun, host = datetime.now(UTC), machine()
    runs: dict[str, list[Run]] = {policy: [] for policy in policies}
    columns = (TextColumn("{task.description:>36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as directory, Progress(*columns, console=console) as progress:
        trace = trace_of(scenario, traces, Path(directory))
        for turn in range(scenario.repeats):  # variants alternate, so that other load of the machine hits all alike
            for policy in policies:
                label = f"{name} {policy}" + (f" {turn + 1}/{scenario.repeats}" if scenario.repeats > 1 else "")
                run = await run_once(scenario, Variant.parse(policy), trace, extra, turn, progress, label)
                runs[policy].append(run)
    found = {policy: Figures.of(those) for policy, those in runs.items()}
    verdicts = [judge(found) for judge in scenario.targets]
    print(markdown(name, found, verdicts), flush=True)
    write(name, scenario, begun, host, extra, runs, found, verdicts)
    return all(verdict.is_met is not False for verdict in verdicts)


def trace_of(scenario: Scenario, traces: Path, directory: Path) -> Path:
    if scenario.trace:
        return traces / scenario.trace
    target = directory / "decode.jsonl"
    subprocess.run([sys.executable, str(ROOT / "bench" / "make_decode_trace.py"), str(target)], check=True)
    return target


COLUMNS = (
    "policy",
    "hit ratio",
    "TTFT mean",
    "p50",
    "p90",
    "p99",
    "busiest / mean",
    "errors",
    "sent late, ms",
    "cores: router, fleet, machine",
)


def markdown(name: str, found: Found, verdicts: Sequence[Verdict]) -> str:
    lines = [
        f"\n### {name}\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for policy, one in found.items():
        times = " | ".join(f"{value:.3f}" for value in (one.mean, one.p50, one.p90, one.p99))
        cores = ", ".join(f"{value:.2f}" for value in (one.router_cores, one.fleet_cores, one.machine_cores))
        rest = f"{one.imbalance:.2f} | {one.errors:.0f} | {one.lateness_ms:.0f} | {cores}"
        lines.append(f"| {policy} | {one.hits:.3f} | {times} | {rest} |")
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines += [
        f"\n- {verdict.target}: {words[verdict.is_met]}" + ("" if verdict.value is None else f" ({verdict.value:.3f})")
        for verdict in verdicts
    ]
    return "\n".join(lines)


def write(
    name: str,
    scenario: Scenario,
    begun: datetime,
    host: Mapping[str, Any],
    extra: Mapping[str, str],
    runs: Mapping[str, Sequence[Run]],
    found: Found,
    verdicts: Sequence[Verdict],
) -> None:
    result = {
        "command": shlex.join(["python", "bench/routing.py", *sys.argv[1:]]),
        "commit": commit(),
        "date": begun.isoformat(timespec="seconds"),
        "machine": host,
        "simulate": shlex.join(["warmroute", *simulate_arguments(scenario)]),
        "serve_environment": {
            policy: {**Variant.parse(policy).environment, **extra, "routers": Variant.parse(policy).routers}
            for policy in runs
        },
        "trace": scenario.trace or "bench/make_decode_trace.py",
        "summary": {policy: dataclasses.asdict(figures) for policy, figures in found.items()},
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
        "runs": {policy: [_shown(run) for run in those] for policy, those in runs.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"routing-{name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _shown(run: Run) -> dict[str, Any]:
    """A run's report without paths of the machine and temporary ports."""
    shown = {"cores": run.cores, **run.report.as_dict()}
    settings = shown["settings"]
    settings.update(
        trace=Path(settings["trace"]).name, urls=len(settings["urls"]), worker_urls=len(settings["worker_urls"])
    )
    return shown


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--policies", help="comma-separated, instead of the scenario's own")
    parser.add_argument(
        "--traces", type=Path, default=ROOT.parent / "shared" / "traces", help="directory of the traces"
    )
    parser.add_argument("--repeats", type=int, help="runs of each policy, whose median counts")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the routers; repeatable")
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}: there are {', '.join(SCENARIOS)}")
        trace = SCENARIOS[name].trace
        if trace and not (options.traces / trace).exists():
            parser.error(f"{name} needs {trace}, which is not in {options.traces}: say where it is with --traces DIR")
    return options


def main() -> None:
    options = parse_arguments()
    extra = dict(pair.split("=", 1) for pair in options.env)
    console = Console(stderr=True)
    missed = []
    for name in options.scenarios:
        policies = options.policies.split(",") if options.policies else SCENARIOS[name].policies
        try:
            if not uvloop.run(run_scenario(name, policies, options.traces, options.repeats, extra, console)):
                missed.append(name)
        except (BenchError, ReplayError) as error:
            raise SystemExit(str(error)) from None
    if missed:
        raise SystemExit(f"targets missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()

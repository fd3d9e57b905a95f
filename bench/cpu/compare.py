"""CPU of the router process, beside other routers: ``python -m bench.cpu.compare --peers-venv DIR``.

For each of vllm-router (consistent_hash), sglang-router (cache_aware), nginx (consistent hash on the session) and
warmroute, all in front of the same two stand-in workers, in interleaved rounds (every round runs every router, in an
order that rotates):

    request   2 kB chat requests, not streamed, 16 connections, 1,000 a second    µs of CPU for each
    flood     the same, as fast as they go                                        µs of CPU for each
    chunk     50 streams, one event every 10 ms in each                           µs of CPU for each
    large     400 kB chat requests, 4 connections, as fast as they go             µs of CPU for each
    alone     2 kB requests, one after the other                                  added median latency over direct
    idle      no traffic                                                          ms of CPU for each second

Under a flood every wake-up of an event loop finds several requests, which makes each cheaper than at a steady pace.
The workers serve /metrics pages of vLLM's real size, clients do not ask for usage chunks, and every answer is checked.
The figures of one machine mean little elsewhere; the ratios within one run are what to read. The medians over the
rounds are printed and, with all rounds, written to a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench.cpu.bodies import Conversation, make_conversations
from bench.cpu.cases import Case, Outcome, measure_idle, measure_requests, measure_stream
from bench.cpu.routers import MissingError, Router, command_for, free_port, running
from bench.provenance import commit, machine

ROUTERS = ("vllm-router", "sglang-router", "nginx", "warmroute")
DIRECT = "direct"
WORKERS = 2
ROOT = Path(__file__).resolve().parents[2]
# case → (how to measure it, its share of --seconds, the figure that is the result)
CASES: Mapping[str, tuple[Case, float, str]] = {
    "request": (functools.partial(measure_requests, connections=16, per_second=1000.0), 1.0, "cpu_us"),
    "flood": (functools.partial(measure_requests, connections=16), 0.5, "cpu_us"),
    "chunk": (measure_stream, 1.0, "cpu_us"),
    "large": (functools.partial(measure_requests, connections=4), 1.0, "cpu_us"),
    "alone": (functools.partial(measure_requests, connections=1), 0.35, "p50_ms"),
    "idle": (measure_idle, 0.35, "cpu_ms_per_s"),
}

Rounds = dict[str, dict[str, list[Outcome]]]
"""case → router → one outcome a round."""


@dataclass(slots=True)
class Line:
    """One router in one case, over all rounds. ``median``, ``least`` and ``most`` are of the case's own figure."""

    median: float | None
    least: float | None
    most: float | None
    p50_ms: float | None
    per_second: float | None
    requests: int
    failures: int
    added_ms: float | None = None
    to_nginx: float | None = None
    to_vllm_router: float | None = None


def conversations_for(case: str) -> Sequence[Conversation]:
    if case == "large":
        return make_conversations(count=16, body_bytes=400_000, messages=41, seed=2)
    return make_conversations(count=256, body_bytes=2_000, messages=5, seed=1)


@contextlib.contextmanager
def start_all(names: Sequence[str], peers: Path) -> Iterator[list[Router]]:
    """Two workers and every router that is installed; a missing one is named on standard error, with its cure."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warmroute-bench-")))
        ports = [free_port() for _ in range(WORKERS)]
        for port in ports:
            worker = [sys.executable, "-m", "bench.cpu.worker", "--port", str(port)]
            stack.enter_context(running(worker, port, directory / f"worker-{port}.log"))
        routers = [Router(DIRECT, ports, None, "")]
        for name in names:
            port = free_port()
            try:
                command = command_for(name, port, ports, peers, directory)
                pid = stack.enter_context(running(command, port, directory / f"{name}.log"))
            except (MissingError, RuntimeError) as error:
                print(f"left out: {name}: {error}", file=sys.stderr)
                continue
            shown = " ".join([Path(command[0]).name, *command[1:]]).replace(str(directory), "DIR")
            routers.append(Router(name, [port], pid, shown))
        yield routers


async def measure(routers: Sequence[Router], cases: Sequence[str], rounds: int, seconds: float) -> Rounds:
    results: Rounds = {case: {router.name: [] for router in routers} for case in cases}
    bodies = {case: conversations_for(case) for case in cases}
    for turn in range(rounds):
        order = [*routers[turn % len(routers) :], *routers[: turn % len(routers)]]
        for case in cases:
            how, share, _ = CASES[case]
            for router in order:
                outcome = await how(router, bodies[case], seconds * share)
                results[case][router.name].append(outcome)
        print(f"round {turn + 1} of {rounds} done", file=sys.stderr)
    return results


def median_of(outcomes: Sequence[Outcome], figure: str) -> float | None:
    values = [outcome.figures[figure] for outcome in outcomes if figure in outcome.figures]
    return statistics.median(values) if values else None


def summarise(results: Rounds) -> dict[str, dict[str, Line]]:
    """case → router → what the rounds came to."""
    return {case: _lines(case, by_router) for case, by_router in results.items()}


def _lines(case: str, by_router: Mapping[str, Sequence[Outcome]]) -> dict[str, Line]:
    figure = CASES[case][2]
    medians = {name: median_of(outcomes, figure) for name, outcomes in by_router.items()}
    lines: dict[str, Line] = {}
    for name, outcomes in by_router.items():
        values = [outcome.figures[figure] for outcome in outcomes if figure in outcome.figures]
        line = Line(
            median=medians[name],
            least=min(values, default=None),
            most=max(values, default=None),
            p50_ms=median_of(outcomes, "p50_ms"),
            per_second=median_of(outcomes, "per_second"),
            requests=sum(outcome.requests for outcome in outcomes),
            failures=sum(outcome.failures for outcome in outcomes),
        )
        direct = medians.get(DIRECT)
        if case == "alone" and line.median is not None and direct is not None:
            line.added_ms = line.median - direct
        if case != "idle" and name != DIRECT:
            line.to_nginx = _ratio(line.median, medians.get("nginx"))
            line.to_vllm_router = _ratio(line.median, medians.get("vllm-router"))
        lines[name] = line
    return lines


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def print_summary(summary: Mapping[str, Mapping[str, Line]]) -> None:
    columns = ("median", "least", "most", "to_nginx", "to_vllm_router", "p50_ms", "added_ms", "per_second", "failures")
    print(f"{'':8}{'':14}" + "".join(f"{column:>12.11}" for column in columns))
    for case, by_router in summary.items():
        for name, line in by_router.items():
            cells = (_cell(getattr(line, column)) for column in columns)
            print(f"{case:8}{name:14}" + "".join(f"{cell:>12}" for cell in cells))


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-venv", type=Path, default=Path("~/.cache/warmroute-peers"), help="where the peers are")
    parser.add_argument("--routers", nargs="*", default=list(ROUTERS), choices=ROUTERS)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="length of one measurement")
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/cpu-compare.json")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    document: dict[str, object] = {
        "command": f"python -m bench.cpu.compare --rounds {options.rounds} --seconds {options.seconds}",
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "figures": {case: figure for case, (_, _, figure) in CASES.items()},
    }
    with start_all(options.routers, options.peers_venv.expanduser()) as routers:
        results = uvloop.run(measure(routers, options.cases, options.rounds, options.seconds))
        document["routers"] = {router.name: router.command for router in routers}
    summary = summarise(results)
    print_summary(summary)
    document["summary"] = {case: {name: asdict(line) for name, line in by.items()} for case, by in summary.items()}
    document["rounds"] = {
        case: {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in by_router.items()}
        for case, by_router in results.items()
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if failures := sum(line.failures for by_router in summary.values() for line in by_router.values()):
        sys.exit(f"{failures} requests failed")


if __name__ == "__main__":
    main()

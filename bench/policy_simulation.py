"""Replays a request trace against model workers in virtual time, with the router's real policies, index and ring.

Real: every policy, ``PrefixIndex``, ``Ring``, ``Facts``. Modelled: workers (paged prefix cache with tail-first LRU, chunked
prefill shared with decoding, a bound on running sequences), the delay of a request, polled load that is stale between
polls, learnt figures that are wrong by up to 10 %, and replicas that share nothing but those polls.

    python bench/policy_simulation.py --trace TRACE.jsonl.xz --speed 2 --limit 3000 --policy cache_aware --replicas 4

A trace is JSON lines, xz-compressed or not: ``timestamp`` in ms, ``input_length`` and ``output_length`` in tokens, and
``hash_ids``, the prompt as a chain of block ids. Rows without ``hash_ids`` share nothing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import lzma
import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

from xxhash import xxh3_64_intdigest

from router.core.fleet.facts import Facts
from router.core.fleet.figures import Figures
from router.core.fleet.ring import Ring
from router.core.index.fingerprint import BLOCK_BYTES, Fingerprint
from router.core.index.prefix_index import Matches, PrefixIndex
from router.core.worker import WorkerName
from router.policies import make_policy
from router.policies.base import Policy
from router.policies.cache_aware import CacheAwareParameters

BYTES_PER_TOKEN = 4
INDEX_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
MESSAGE_BLOCKS = 4
"""Block 0 is the system message. Messages of this many blocks follow, the user's and the assistant's in turn."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    input_tokens: int
    output_tokens: int
    keys: Sequence[int]
    """Chained keys of the prompt's whole blocks."""
    fingerprint: Fingerprint
    earlier_tokens: int
    anchor: int
    session: object


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers' properties. Rates are tokens per second."""

    workers: int = 8
    cache_blocks: int = 3000
    block_tokens: int = 512
    prefill_rate: float = 15_000.0
    decode_step_s: float = 0.030
    step_tokens: int = 2048
    max_running: int = 64
    slow: tuple[tuple[int, float], ...] = ()
    """Workers that are slower in everything, and by which factor."""


# ------------------------------------------------------------------------------------------------------------ workloads


def read_trace(path: Path, speed: float, limit: int | None, block_tokens: int) -> list[Arrival]:
    opened = lzma.open(path, "rt") if path.suffix == ".xz" else path.open()  # noqa: SIM115  # closed by the with below
    with opened as lines:
        rows = [json.loads(line) for _, line in zip(range(limit or 1 << 60), lines, strict=False)]
    first = rows[0]["timestamp"]
    unique = count(1 << 60)
    arrivals = []
    for row in rows:
        tokens = max(1, row["input_length"])
        ids = row.get("hash_ids") or [next(unique) for _ in range(-(-tokens // block_tokens))]
        at_s = (row["timestamp"] - first) / 1000 / speed
        arrivals.append(shape(at_s, tokens, row["output_length"], ids, block_tokens, row.get("session_id")))
    return arrivals


def shape(
    at_s: float, tokens: int, output: int, ids: Sequence[int], block_tokens: int, session: object = None
) -> Arrival:
    """One request as the router sees it: chain, anchor and earlier turns from its block ids."""
    keys: list[int] = []
    key = 7
    for block in ids:
        key = xxh3_64_intdigest(block.to_bytes(8, "little"), key)
        keys.append(key)
    whole = tokens // INDEX_TOKENS
    if block_tokens >= INDEX_TOKENS:
        per = block_tokens // INDEX_TOKENS
        hashes = [(key + part) & (1 << 64) - 1 for key in keys for part in range(per)][:whole]
    else:
        per = INDEX_TOKENS // block_tokens
        hashes = keys[per - 1 :: per][:whole]
    messages = -(-(len(ids) - 1) // MESSAGE_BLOCKS)
    # The newest message is the user's; an even count means that the last two groups are one message.
    turns_before = messages - 1 if messages % 2 else messages - 2
    earlier = (1 + MESSAGE_BLOCKS * turns_before) * block_tokens if turns_before > 0 else 0
    anchor = keys[min(MESSAGE_BLOCKS, len(keys) - 1)]
    return Arrival(
        at_s,
        tokens,
        max(1, output),
        keys[: tokens // block_tokens],
        Fingerprint(hashes, tokens * BYTES_PER_TOKEN),
        min(earlier, tokens),
        anchor,
        session if session is not None else anchor,
    )


def make_decode_heavy(random: Random, rate: float, requests: int, block_tokens: int) -> list[Arrival]:
    """Poisson arrivals of 400 tokens in and 2,000 out that share nothing."""
    return _poisson(random, rate, requests, lambda i: shape(0, 400, 2000, [i], block_tokens))


def make_giant_prompt(random: Random, rate: float, requests: int, block_tokens: int) -> list[Arrival]:
    """All requests share a system prompt of 40 blocks; half of them are the second turn of an earlier request."""
    shared = list(range(40))
    seen: list[list[int]] = []
    fresh = count(1000)

    def one(_i: int) -> Arrival:
        if seen and random.random() < 0.5:
            ids = [*seen.pop(random.randrange(len(seen))), *(next(fresh) for _ in range(8))]
        else:
            ids = [*shared, *(next(fresh) for _ in range(random.randrange(2, 9)))]
            seen.append(ids)
        return shape(0, len(ids) * block_tokens - 100, 200, ids, block_tokens)

    return _poisson(random, rate, requests, one)


def make_hot_tenant(random: Random, rate: float, requests: int, block_tokens: int) -> list[Arrival]:
    """Half of all requests share one tenant's prefix of 60 blocks and end in a short question.

    The prefix includes the first user turn.
    """
    hot = list(range(60))
    fresh = count(1000)

    def one(_i: int) -> Arrival:
        ids = (
            [*hot, next(fresh), next(fresh)]
            if random.random() < 0.5
            else [next(fresh) for _ in range(random.randrange(4, 30))]
        )
        return shape(0, len(ids) * block_tokens - 100, 200, ids, block_tokens)

    return _poisson(random, rate, requests, one)


def _poisson(random: Random, rate: float, requests: int, one: Callable[[int], Arrival]) -> list[Arrival]:
    at_s = 0.0
    arrivals = []
    for i in range(requests):
        at_s += random.expovariate(rate)
        made = one(i)
        arrivals.append(
            Arrival(
                at_s,
                made.input_tokens,
                made.output_tokens,
                made.keys,
                made.fingerprint,
                made.earlier_tokens,
                made.anchor,
                made.session,
            )
        )
    return arrivals


# -------------------------------------------------------------------------------------------------------------- workers


@dataclass(slots=True, eq=False)
class Job:
    """One request on one worker."""

    arrival: Arrival
    replica: int
    worker: int
    predicted_uncached: float
    matches_tokens: float
    cached_tokens: int = 0
    done_tokens: int = 0
    left_output: int = 0
    pinned: list[int] = field(default_factory=list)
    next_key: int = 0
    """The index of the first key that is neither pinned nor left to another job that computed it too."""
    spare_blocks: int = 0
    first_token_s: float = 0.0


class ModelWorker:
    """Continuous batching over a paged cache. An event is the end of a step; steps of decoding alone are one event."""

    def __init__(self, fleet: Fleet, factor: float, call_at: Callable[[float, Callable[[], None]], None]) -> None:
        self._fleet = fleet
        self._factor = factor
        self._call_at = call_at
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self._free: OrderedDict[int, None] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._blank = fleet.cache_blocks
        self._junk = 0
        self._epoch = 0
        self._busy = False
        self._phase: tuple[float, float, int] | None = None
        self.on_first: Callable[[Job, float], None] = lambda _job, _now: None
        self.on_end: Callable[[Job, float], None] = lambda _job, _now: None

    @property
    def scheduled_backlog_tokens(self) -> int:
        """Uncached prompt tokens of the running requests that have no first token yet."""
        return sum(job.arrival.input_tokens - job.cached_tokens for job in self.running if not job.first_token_s)

    def accept(self, job: Job, now: float) -> None:
        self.waiting.append(job)
        if not self._busy:
            self._start(now)
        elif self._phase is not None and len(self.running) < self._fleet.max_running:
            start, step, steps = self._phase
            done = max(1, math.ceil((now - start) / step - 1e-9))
            if done < steps:
                self._decode_phase(start, step, done)

    def _decode_phase(self, start: float, step: float, steps: int) -> None:
        self._epoch += 1
        epoch = self._epoch
        self._phase = (start, step, steps)

        def end() -> None:
            if epoch == self._epoch:
                self._finish_step(start + step * steps, steps, [])

        self._call_at(start + step * steps, end)

    def _start(self, now: float) -> None:
        fleet = self._fleet
        decoding = sum(1 for job in self.running if job.first_token_s)
        budget = fleet.step_tokens - decoding
        chunks: list[tuple[Job, int]] = []
        for job in self.running:
            if not job.first_token_s and budget > 0:
                chunk = min(budget, job.arrival.input_tokens - job.done_tokens)
                chunks.append((job, chunk))
                budget -= chunk
        while self.waiting and budget > 0 and len(self.running) < fleet.max_running and self._admit(self.waiting[0]):
            job = self.waiting.popleft()
            self.running.append(job)
            chunk = min(budget, job.arrival.input_tokens - job.done_tokens)
            chunks.append((job, chunk))
            budget -= chunk
        self._busy = bool(self.running)
        self._phase = None
        if not self._busy:
            return
        if not chunks:
            steps = min(job.left_output for job in self.running)
            self._decode_phase(now, fleet.decode_step_s * self._factor, steps)
            return
        prefill = sum(chunk for _, chunk in chunks) / fleet.prefill_rate
        took = ((fleet.decode_step_s if decoding else 0.0) + prefill) * self._factor
        self._epoch += 1
        self._call_at(now + took, lambda: self._finish_step(now + took, 1, chunks))

    def _finish_step(self, now: float, steps: int, chunks: list[tuple[Job, int]]) -> None:
        ended = []
        for job in self.running:
            if job.first_token_s:
                job.left_output -= steps
                if job.left_output <= 0:
                    ended.append(job)
        for job, chunk in chunks:
            job.done_tokens += chunk
            self._publish(job)
            if job.done_tokens >= job.arrival.input_tokens:
                job.first_token_s = now
                job.left_output = job.arrival.output_tokens - 1
                self.on_first(job, now)
                if job.left_output <= 0:
                    ended.append(job)
        for job in ended:
            self.running.remove(job)
            self._release(job)
            self.on_end(job, now)
        self._start(now)

    def _admit(self, job: Job) -> bool:
        fleet = self._fleet
        keys = job.arrival.keys
        hits = 0
        for key in keys:
            if key not in self._free and key not in self._pins:
                break
            hits += 1
        # At least one token is computed, and a block is cached whole or not at all.
        hits = min(hits, (job.arrival.input_tokens - 1) // fleet.block_tokens)
        total = job.arrival.input_tokens + job.arrival.output_tokens
        need = min(-(-total // fleet.block_tokens), fleet.cache_blocks) - hits
        room = self._blank + len(self._free) - sum(1 for key in keys[:hits] if key in self._free)
        if need > room:
            return False
        for key in keys[:hits]:
            self._free.pop(key, None)
            self._pins[key] = self._pins.get(key, 0) + 1
        job.pinned = list(keys[:hits])
        blank = min(self._blank, need)
        self._blank -= blank
        for _ in range(need - blank):
            self._free.popitem(last=False)
        job.spare_blocks = need
        job.next_key = hits
        job.cached_tokens = job.done_tokens = hits * fleet.block_tokens
        return True

    def _publish(self, job: Job) -> None:
        """Makes whole blocks that were just computed available for hits."""
        keys = job.arrival.keys
        upto = min(len(keys), job.done_tokens // self._fleet.block_tokens)
        for key in keys[job.next_key : upto]:
            if key not in self._pins and key not in self._free and job.spare_blocks > 0:
                self._pins[key] = 1
                job.pinned.append(key)
                job.spare_blocks -= 1
        job.next_key = max(job.next_key, upto)

    def _release(self, job: Job) -> None:
        for _ in range(job.spare_blocks):
            self._junk -= 1
            self._free[self._junk] = None
        for key in reversed(job.pinned):
            left = self._pins[key] - 1
            if left:
                self._pins[key] = left
            else:
                del self._pins[key]
                self._free[key] = None


# -------------------------------------------------------------------------------------------------------------- routers


class Replica:
    """One router: its policy, its index, its leases, and its polled figures."""

    def __init__(
        self, number: int, fleet: Fleet, policy: Policy, ring: Ring, names: list[WorkerName], random: Random
    ) -> None:
        n = fleet.workers
        self.number = number
        self.policy = policy
        self._ring = ring
        self._eligible = range(n)
        factors = dict(fleet.slow)
        seconds = [factors.get(i, 1.0) / fleet.prefill_rate * random.uniform(0.9, 1.1) for i in range(n)]
        self.view = Figures(names, [0] * n, [0] * n, [0.0] * n, [0.0] * n, seconds, [1.0] * n)
        self.pending = [0] * n
        self.index = PrefixIndex(max_entries=4_000_000, default_capacity_blocks=2000)
        for i in range(n):
            self.index.add(i, fleet.cache_blocks * fleet.block_tokens // INDEX_TOKENS)
        self._sessions: dict[object, int] = {}
        self._mean_uncached = 4000.0
        self._polled_foreign = [0.0] * n
        self._polled_at = 0.0
        self.reasons: dict[str, int] = {}

    def route(self, arrival: Arrival, now: float) -> Job:
        self._drain(now)
        matches = self.index.match(arrival.fingerprint, arrival.input_tokens)
        facts = Facts(
            fleet=self.view,
            eligible=self._eligible,
            prompt_tokens=arrival.input_tokens,
            earlier_tokens=arrival.earlier_tokens,
            anchor=arrival.anchor,
            ring=self._ring,
            matches=matches,
            session_worker=self._sessions.get(arrival.session),
        )
        ranking = self.policy.rank(facts)
        worker = ranking.order[0]
        self.reasons[ranking.reason] = self.reasons.get(ranking.reason, 0) + 1
        self._sessions[arrival.session] = worker
        self.index.record(worker, arrival.fingerprint)
        return self._lease(arrival, worker, matches)

    def _lease(self, arrival: Arrival, worker: int, matches: Matches) -> Job:
        known = matches.tokens(worker)
        uncached = arrival.input_tokens - known
        self.view.in_flight[worker] += 1
        self.view.queued_prefill_tokens[worker] += uncached
        self.pending[worker] += 1
        return Job(arrival, self.number, worker, uncached, known)

    def see_first(self, job: Job) -> None:
        worker = job.worker
        self.pending[worker] -= 1
        left = self.view.queued_prefill_tokens[worker] - job.predicted_uncached
        self.view.queued_prefill_tokens[worker] = left if self.pending[worker] else 0.0
        self._mean_uncached += 0.05 * (job.arrival.input_tokens - job.cached_tokens - self._mean_uncached)

    def see_end(self, job: Job) -> None:
        self.view.in_flight[job.worker] -= 1
        self.index.record(job.worker, job.arrival.fingerprint, job.arrival.output_tokens * BYTES_PER_TOKEN)

    def poll(self, workers: Sequence[ModelWorker], now: float) -> None:
        """Reads a worker's counters: its backlog in tokens and the number of waiting requests.

        The backlog is the scheduled tokens that missed the cache and are not prefilled yet: queries less hits less computed
        tokens. The part that this router did not send is foreign.
        """
        self._polled_at = now
        for i, worker in enumerate(workers):
            running, waiting = len(worker.running), len(worker.waiting)
            self.view.foreign_in_flight[i] = max(0, running + waiting - self.view.in_flight[i])
            backlog = worker.scheduled_backlog_tokens + waiting * self._mean_uncached
            self._polled_foreign[i] = max(0.0, backlog - self.view.queued_prefill_tokens[i])

    def _drain(self, now: float) -> None:
        """Between polls the foreign queue shrinks, since the worker serves it side by side with this router's requests."""
        for i, foreign in enumerate(self._polled_foreign):
            done = (now - self._polled_at) / self.view.seconds_per_token[i]
            own = self.view.queued_prefill_tokens[i]
            left = max(0.0, foreign - done * foreign / (foreign + own)) if foreign else 0.0
            self.view.foreign_prefill_tokens[i] = left


# ------------------------------------------------------------------------------------------------------------ the whole


@dataclass(frozen=True, slots=True)
class Result:
    hit_ratio: float
    ttfts_s: Sequence[float]
    """Ascending."""
    requests: Sequence[int]
    """Per worker."""
    reasons: dict[str, int]

    def quantile(self, q: float) -> float:
        return self.ttfts_s[min(len(self.ttfts_s) - 1, int(q * len(self.ttfts_s)))]

    @property
    def mean_s(self) -> float:
        return statistics.fmean(self.ttfts_s)

    @property
    def imbalance(self) -> float:
        return max(self.requests) / statistics.fmean(self.requests)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions between routers and workers, in seconds of the trace's time."""

    replicas: int = 1
    poll_interval_s: float = 1.0
    delay_s: float = 0.040
    seed: int = 0


class Simulation:
    def __init__(self, fleet: Fleet, conditions: Conditions, make_policy: Callable[[Random], Policy]) -> None:
        self._conditions = conditions
        self._random = Random(conditions.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._now = 0.0
        factors = dict(fleet.slow)
        self._workers = [ModelWorker(fleet, factors.get(i, 1.0), self._call_at) for i in range(fleet.workers)]
        names = [WorkerName(f"w-{xxh3_64_intdigest(b'%d' % i) & 0xFFFFFFFF:08x}") for i in range(fleet.workers)]
        ring = Ring({name: i for i, name in enumerate(names)})
        self._replicas = [
            Replica(number, fleet, make_policy(Random(number)), ring, names, self._random)
            for number in range(conditions.replicas)
        ]
        for worker in self._workers:
            worker.on_first = self._on_first
            worker.on_end = self._on_end
        self._ttfts: list[float] = []
        self._cached = self._asked = 0
        self._requests = [0] * fleet.workers

    def run(self, arrivals: Iterable[Arrival]) -> Result:
        left = 0
        for arrival in arrivals:
            self._call_at(arrival.at_s, partial(self._arrive, arrival))
            left += 1
        for replica in self._replicas:
            self._call_at(self._random.random() * self._conditions.poll_interval_s, partial(self._poll, replica))
        while len(self._ttfts) < left:
            self._now, _, call = heapq.heappop(self._events)
            call()
        reasons: dict[str, int] = {}
        for replica in self._replicas:
            for reason, times in replica.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + times
        return Result(self._cached / self._asked, sorted(self._ttfts), self._requests, reasons)

    def _call_at(self, at_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), call))

    def _delay(self) -> float:
        return self._conditions.delay_s / 2 * self._random.uniform(0.5, 1.5)

    def _arrive(self, arrival: Arrival) -> None:
        job = self._random.choice(self._replicas).route(arrival, self._now)
        self._requests[job.worker] += 1
        at_s = self._now + self._delay()
        self._call_at(at_s, lambda: self._workers[job.worker].accept(job, at_s))

    def _on_first(self, job: Job, now: float) -> None:
        at_s = now + self._delay()
        self._call_at(at_s, lambda: self._replicas[job.replica].see_first(job))
        self._ttfts.append(at_s - job.arrival.at_s)
        self._cached += job.cached_tokens
        self._asked += job.arrival.input_tokens

    def _on_end(self, job: Job, now: float) -> None:
        # This is longer than any delay of a first token, so the end never comes before it.
        self._call_at(now + self._conditions.delay_s, lambda: self._replicas[job.replica].see_end(job))

    def _poll(self, replica: Replica) -> None:
        replica.poll(self._workers, self._now)
        self._call_at(self._now + self._conditions.poll_interval_s, lambda: self._poll(replica))


def describe(result: Result) -> str:
    q = result.quantile
    return (
        f"hit {result.hit_ratio:.3f}  TTFT mean {result.mean_s:8.3f}  p50 {q(0.5):7.3f}  p90 {q(0.9):7.3f}"
        f"  p99 {q(0.99):8.3f}  max/mean requests {result.imbalance:.2f}"
    )


MADE: dict[str, Callable[[Random, float, int, int], list[Arrival]]] = {
    "decode-heavy": make_decode_heavy,
    "giant-prompt": make_giant_prompt,
    "hot-tenant": make_hot_tenant,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay a trace against model workers in virtual time.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path)
    source.add_argument("--made", choices=sorted(MADE), help="a workload made by lot in place of a trace")
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second of a made workload")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than recorded")
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument(
        "--policy", default="cache_aware", help="names, separated by commas; prefix_ring:0 is without a bound"
    )
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--cache-blocks", type=int, default=3000)
    parser.add_argument("--block-tokens", type=int, default=512)
    parser.add_argument("--slow", default="", help="WORKER:FACTOR, separated by commas")
    parser.add_argument("--poll-interval-s", type=float, default=1.0)
    parser.add_argument("--miss-weight", type=float, default=CacheAwareParameters().miss_weight)
    parser.add_argument("--leave-weight", type=float, default=CacheAwareParameters().leave_weight)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.made:
        arrivals = MADE[args.made](Random(args.seed), args.rate, args.limit, args.block_tokens)
    else:
        arrivals = read_trace(args.trace, args.speed, args.limit, args.block_tokens)
    slow = tuple((int(one.split(":")[0]), float(one.split(":")[1])) for one in args.slow.split(",") if one)
    fleet = Fleet(args.workers, args.cache_blocks, args.block_tokens, slow=slow)
    conditions = Conditions(args.replicas, args.poll_interval_s, seed=args.seed)
    for chosen in args.policy.split(","):
        name, _, bound = chosen.partition(":")
        parameters = {"miss_weight": args.miss_weight, "leave_weight": args.leave_weight, "alone": args.alone}
        if bound:
            parameters["ring_bound"] = float(bound)
        result = Simulation(fleet, conditions, partial(make_policy, name, parameters)).run(arrivals)
        print(f"{chosen:18} {describe(result)}  {result.reasons}", flush=True)


if __name__ == "__main__":
    main()

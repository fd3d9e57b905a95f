"""The cost of one routing decision: 1,000 workers, a prompt of 100,000 tokens, a full index.

It also measures 8 workers and a prompt of 2 kB, the fingerprint of 4 MB, and the index's memory over a million different
prompts, against its bound.

    python -m bench.decision_cost
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from random import Random

from bench.verdict import conclude
from router.core.fleet.facts import Facts
from router.core.fleet.figures import Figures
from router.core.fleet.ring import Ring
from router.core.index.fingerprint import BLOCK_BYTES, Fingerprint, anchor, fingerprint
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import WorkerName
from router.policies import POLICIES, make_policy
from router.policies.base import Policy

PROMPTS = 1_000_000
PROMPTS_MAX_ENTRIES = 200_000


FIGURES: dict[str, float] = {}
"""The figures in microseconds (p50), unless the key names another unit."""


def measure(what: str, call: Callable[[], object], rounds: int = 2000, case: str = "") -> None:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    times.sort()
    FIGURES[f"{case}{what.strip()}"] = round(times[rounds // 2] * 1e6, 2)
    print(
        f"{what:44} p50 {times[rounds // 2] * 1e6:9.1f} µs   p99 {times[rounds * 99 // 100] * 1e6:9.1f} µs", flush=True
    )


def measure_decision(workers: int, prompt_bytes: int, rounds: int) -> None:
    """All workers hold the system prompt, a fifth of them half of this prompt, twenty of them nearly all of it."""
    random = Random(1)
    names = [WorkerName(f"w-{random.getrandbits(32):08x}") for _ in range(workers)]
    start = time.perf_counter()
    ring = Ring({name: position for position, name in enumerate(names)})
    print(f"{workers} workers, {prompt_bytes:,} bytes; ring built in {(time.perf_counter() - start) * 1e3:.1f} ms")
    prompt = random.randbytes(prompt_bytes)
    segments = [prompt[start : start + 8000] for start in range(0, prompt_bytes, 8000)]
    print_of_prompt = fingerprint(segments, model="m")
    hashes = print_of_prompt.hashes
    index = PrefixIndex(max_entries=4_000_000, default_capacity_blocks=4000)
    for position in range(workers):
        index.add(position)
        for _ in range(5):
            index.record(position, Fingerprint([random.getrandbits(64) for _ in range(100)], 100 * BLOCK_BYTES))
        depth = len(hashes) // 20
        if position % 5 == 0:
            depth = len(hashes) // 2 + position % 7
        if position % 50 == 0:
            depth = len(hashes) - position % 11
        index.record(position, Fingerprint(hashes[:depth], depth * BLOCK_BYTES))
    view = Figures(
        names,
        [random.randrange(20) for _ in names],
        [random.randrange(5) for _ in names],
        [random.random() * 50_000 for _ in names],
        [random.random() * 5_000 for _ in names],
        [random.uniform(0.9, 1.1) / 15_000 for _ in names],
        [1.0] * workers,
    )
    policy = make_policy("cache_aware", {}, random)
    tokens = prompt_bytes / 4
    key = anchor(segments[:2], model="m")

    def decide(policy: Policy) -> None:
        policy.rank(
            Facts(
                fleet=view,
                eligible=range(workers),
                prompt_tokens=tokens,
                earlier_tokens=tokens * 0.9,
                anchor=key,
                ring=ring,
                matches=index.match(print_of_prompt, tokens),
                session_worker=None,
            )
        )

    case = f"{workers} workers, {prompt_bytes} bytes: "
    measure("  fingerprint", lambda: fingerprint(segments, model="m"), rounds, case)
    measure("  anchor", lambda: anchor(segments[:2], model="m"), rounds, case)
    measure("  match", lambda: index.match(print_of_prompt, tokens), rounds, case)
    measure("  match and rank", partial(decide, policy), rounds, case)
    measure("  record", lambda: index.record(0, print_of_prompt), rounds, case)
    for name in sorted(set(POLICIES) - {"cache_aware"}):
        other = make_policy(name, {}, random)
        measure(f"  match and rank, {name}", partial(decide, other), rounds // 4, case)


def measure_memory() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = PrefixIndex(max_entries=PROMPTS_MAX_ENTRIES, default_capacity_blocks=PROMPTS_MAX_ENTRIES)
    for position in range(8):
        index.add(position)
    random = Random(2)
    for number in range(PROMPTS):
        index.record(number % 8, Fingerprint([random.getrandbits(64), random.getrandbits(64)], 2 * BLOCK_BYTES))
    now, peak = (each - before for each in tracemalloc.get_traced_memory())
    print(
        f"{PROMPTS:,} distinct prompts of two blocks: {index.entries:,} entries of at most {PROMPTS_MAX_ENTRIES:,};"
        f" {now / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB, {now / index.entries:.0f} bytes an entry"
    )
    tracemalloc.stop()
    FIGURES["index entries through a million prompts"] = index.entries
    FIGURES["index MB through a million prompts"] = round(now / 1e6, 1)
    index = PrefixIndex(max_entries=4_000_000, default_capacity_blocks=20_000)
    for position in range(2):
        index.add(position)
        index.record(position, Fingerprint([random.getrandbits(64) for _ in range(20_000)], 20_000 * BLOCK_BYTES))
    start = time.perf_counter()
    held = index.blocks(0)
    index.clear(0)
    print(f"a restarted worker's {held:,} entries forgotten in {(time.perf_counter() - start) * 1e3:.1f} ms")


def main() -> int:
    large = Random(3).randbytes(4 << 20)
    measure("fingerprint of 4 MB", lambda: fingerprint([large], model="m"), 50)
    measure_decision(8, 2048, 2000)
    measure_decision(1000, 400_000, 400)
    measure_memory()
    decision_us = FIGURES["1000 workers, 400000 bytes: match and rank"]
    entries = FIGURES["index entries through a million prompts"]
    return conclude(
        "decision_cost",
        FIGURES,
        {
            "match, cost and order among 1,000 workers take at most 0.5 ms": decision_us <= 500,
            f"the index stays within {PROMPTS_MAX_ENTRIES} entries through {PROMPTS} prompts": entries
            <= PROMPTS_MAX_ENTRIES,
        },
    )


if __name__ == "__main__":
    sys.exit(main())

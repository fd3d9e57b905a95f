"""Writes the demo's trace: conversations that share one system message, from a fixed seed.

    python bench/make_demo_trace.py

Each turn's prompt is the prompt before, its reply, and a new message. For routing it resembles real traffic: first messages
of very different sizes, a few long conversations among many short ones, pauses between turns, and irregular arrivals.
Must stay under 60 kB, since the package contains it.
"""

import json
import random
from itertools import count
from pathlib import Path
from typing import TypedDict

TARGET = Path(__file__).resolve().parent.parent / "router" / "cli" / "demo-trace.jsonl"
SEED = 20
BLOCK_TOKENS = 512
SPAN_S = 100.0
CONVERSATIONS = 110
MEAN_MORE_TURNS = 6.0
MEAN_FIRST_BLOCKS = 12.0
MEAN_TURN_BLOCKS = 2.0
MEAN_READING_S = 10.0
MAX_BYTES = 60_000


class Row(TypedDict):
    """One line: ms, tokens, tokens, and the chain of block ids."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int]


def make_rows(seed: int = SEED) -> list[Row]:
    """Rows in order of time. Blocks are numbered by first appearance in a conversation; 0 is the system message."""
    dice = random.Random(seed)
    fresh = count(1)
    rows: list[Row] = []
    for _ in range(CONVERSATIONS):
        rows += _conversation(dice, fresh)
    rows.sort(key=lambda row: row["timestamp"])
    return rows


def _conversation(dice: random.Random, fresh: "count[int]") -> list[Row]:
    rows: list[Row] = []
    at_s = dice.uniform(-0.4 * SPAN_S, SPAN_S)  # some were under way before
    chain = [0]
    new_blocks = 1 + round(dice.expovariate(1 / MEAN_FIRST_BLOCKS))
    for _ in range(1 + round(dice.expovariate(1 / MEAN_MORE_TURNS))):
        chain += [next(fresh) for _ in range(new_blocks)]
        in_last = dice.randint(1, BLOCK_TOKENS)
        reply_tokens = 10 + round(dice.expovariate(1 / 120))
        if 0 <= at_s < SPAN_S:
            length = (len(chain) - 1) * BLOCK_TOKENS + in_last
            rows.append(
                {
                    "timestamp": round(at_s * 1000),
                    "input_length": length,
                    "output_length": reply_tokens,
                    "hash_ids": [*chain],
                }
            )
        at_s += 2.0 + reply_tokens * 0.03 + dice.expovariate(1 / MEAN_READING_S)
        chain.pop()  # the last block was not full: its place is taken by one that holds the reply too
        new_blocks = 2 + round(dice.expovariate(1 / MEAN_TURN_BLOCKS))
    return rows


def main() -> None:
    rows = make_rows()
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    if len(text) > MAX_BYTES:
        raise SystemExit(f"{len(text)} bytes are more than {MAX_BYTES}")
    TARGET.write_text(text, "utf-8")
    print(f"{TARGET.name}: {len(rows)} requests, {len(text)} bytes")


if __name__ == "__main__":
    main()

"""The cost of each way to keep a long conversation within a window, by the worker's counts.

The conversations are real dialogues. Each turn's answer reports its prompt tokens, cached tokens and TTFT. In some ways
the client keeps the history and sends all of it to the stateless route:

    none                 the whole history, until the window is full
    first-in-first-out   each turn drops the oldest messages, as few as possible
    last-20-messages     the last 20 messages only
    window-by-client     at the high mark, messages are dropped down to the low mark

In the others the router keeps the history and gets the new message only: session-none, -window, -summary, -recall,
-hybrid. Marks are tokens of the history. The fleet is simulated and decodes a hundred times as fast as a real one, since
the figures do not depend on decoding. Times are the fleet's seconds; the time of client and router counts --time-scale
times.

    python -m bench.context --dialogues mt-bench-101.jsonl.xz [--ways none,session-window]
    python -m bench.context --dialogues … --shapes             shares of the window, for three shapes of conversation
    python -m bench.context --dialogues … --vllm http://127.0.0.1:8000      one real worker, and shorter conversations
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from bench.context_client import Marks, ask, system_message
from bench.context_figures import SLACK_TOKENS, summed_up
from bench.context_runs import SESSION, WAYS, Found, Plan, run
from bench.context_shapes import compare_shapes
from bench.dialogues import Count, Dialogue, Turn, conversation, preamble, read_dialogues
from bench.verdict import conclude
from router.simulator.tokenizer import count_tokens

SEEDS = 8
WINDOW = 131_072
TURNS, TURN_TOKENS, SYSTEM_TOKENS = 400, 310, 1200
"""The chat template raises a turn to 340 tokens."""
MARKS = Marks(high=8000, low=3000)
REAL_SEEDS = 2
REAL_TURNS, REAL_SYSTEM_TOKENS = 40, 150
REAL_MARKS = Marks(high=1200, low=500)
TIME_SCALE, PAUSE_S = 5.0, 0.02
SHAPES_SEEDS, SHAPES_TIME_SCALE, SHAPES_PAUSE_S = 2, 100.0, 0.008

MIN_WINDOW_HITS, MIN_SUMMARY_HITS = 0.94, 0.95
MAX_PREFILL_SHARE = 1 / 20
MAX_HYBRID_PREFILL = 1.2

Figures = Mapping[str, dict[str, Any]]


def count_simulated(text: str) -> int:
    return count_tokens(text.encode())


def simulated_plan(arguments: argparse.Namespace, dialogues: list[Dialogue]) -> Plan:
    seeds = arguments.sessions or SEEDS
    turns = arguments.turns or TURNS
    return Plan(
        system=preamble(dialogues, SYSTEM_TOKENS, count_simulated),
        conversations=[
            conversation(dialogues, seed, turns, TURN_TOKENS, count_simulated) for seed in range(1, seeds + 1)
        ],
        count=count_simulated,
        window=WINDOW,
        time_scale=arguments.time_scale or (SHAPES_TIME_SCALE if arguments.shapes else TIME_SCALE),
        pause_s=arguments.pause_ms / 1e3 or (SHAPES_PAUSE_S if arguments.shapes else PAUSE_S),
        extra=dict(one.split("=", 1) for one in arguments.set),
    )


async def real_plan(arguments: argparse.Namespace, dialogues: list[Dialogue]) -> Plan:
    """A plan for a real worker. Its tokens are estimated from bytes, by the worker's own count of such a text."""
    worker: str = arguments.vllm.rstrip("/")
    text = preamble(dialogues, 1000, lambda text: len(text) // 4)
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{worker}/v1/models") as answer:
            model = (await answer.json())["data"][0]
        body = {"model": model["id"], "messages": [msgspec.Raw(system_message(text))], "max_tokens": 1, "stream": True}
        body["stream_options"] = {"include_usage": True}
        reply = await ask(http, f"{worker}/v1/chat/completions", msgspec.json.encode(body))
    count = counting_bytes(len(text.encode()) / reply.usage["prompt_tokens"])
    seeds, turns = arguments.sessions or REAL_SEEDS, arguments.turns or REAL_TURNS
    return Plan(
        system=preamble(dialogues, REAL_SYSTEM_TOKENS, count),
        conversations=[conversation(dialogues, seed, turns, 0, count) for seed in range(1, seeds + 1)],
        count=count,
        model=model["id"],
        window=model.get("max_model_len") or WINDOW,
        worker=worker,
        time_scale=1.0,
        pause_s=arguments.pause_ms / 1e3 or PAUSE_S,
        extra=dict(one.split("=", 1) for one in arguments.set),
    )


def shaped(dialogues: list[Dialogue]) -> Callable[[int, int], list[list[Turn]]]:
    return lambda turns, tokens: [
        conversation(dialogues, seed, turns, tokens, count_simulated) for seed in range(1, SHAPES_SEEDS + 1)
    ]


def counting_bytes(bytes_per_token: float) -> Count:
    return lambda text: round(len(text.encode()) / bytes_per_token)


async def compare(plan: Plan, ways: Sequence[str], watermarks: Marks, slack: int) -> dict[str, dict[str, Any]]:
    figures = {}
    for way in ways:
        began = time.monotonic()
        found = await run(plan, way, watermarks)
        figures[way] = _figures(found, plan, slack)
        took_s = time.monotonic() - began
        print(f"{way}: hits {figures[way]['hit_ratio']:.4f}, {took_s:.0f} s", file=sys.stderr, flush=True)
    return figures


def _figures(found: Found, plan: Plan, slack: int) -> dict[str, Any]:
    return {
        **summed_up(found.sessions, found.summary_tokens, plan.time_scale, slack),
        "turns_of_each": [len(session) for session in found.sessions],
        "summaries": found.summary_calls,
        "series": found.series,
    }


def claims(figures: Figures) -> dict[str, bool]:
    """The claims about the ways that were run."""
    hits = {way: one["hit_ratio"] for way, one in figures.items()}
    prefill = {way: one["prefill_tokens_a_turn"]["mean"] for way, one in figures.items()}
    window, summary, hybrid = (SESSION + name for name in ("window", "summary", "hybrid"))
    found = {}
    for way, least in ((window, MIN_WINDOW_HITS), (summary, MIN_SUMMARY_HITS)):
        if way in hits:
            found[f"{way}: at least {least:g} of its prompts' tokens are cached"] = hits[way] >= least
        if way in hits and "first-in-first-out" in hits:
            holds = prefill[way] <= MAX_PREFILL_SHARE * prefill["first-in-first-out"]
            found[f"{way}: prefills at most a twentieth of what first-in-first-out does"] = holds
    if summary in hits and hybrid in hits:
        recalled = max(0.0, figures[hybrid]["put_in_tokens_a_turn"] - figures[summary]["put_in_tokens_a_turn"])
        holds = prefill[hybrid] <= MAX_HYBRID_PREFILL * prefill[summary] + recalled
        found[f"hybrid prefills at most {MAX_HYBRID_PREFILL:g} times what summary does, and what it recalled"] = holds
    return found


async def main(arguments: argparse.Namespace) -> int:
    dialogues = read_dialogues(arguments.dialogues)
    plan = await real_plan(arguments, dialogues) if arguments.vllm else simulated_plan(arguments, dialogues)
    ways = arguments.ways.split(",") if arguments.ways else []
    if arguments.shapes:
        return conclude("context-shapes", await compare_shapes(plan, SYSTEM_TOKENS, shaped(dialogues)), {})
    watermarks = REAL_MARKS if arguments.vllm else MARKS
    watermarks = Marks(arguments.high or watermarks.high, arguments.low or watermarks.low)
    figures = await compare(plan, ways or WAYS, watermarks, 4 * SLACK_TOKENS if arguments.vllm else SLACK_TOKENS)
    is_real = bool(arguments.vllm)
    return conclude("context-vllm" if is_real else "context", figures, {} if is_real else claims(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=Path, required=True, help="a dialogue a line, as MT-Bench-101 has them")
    parser.add_argument("--ways", default="", help=f"of {', '.join(WAYS)}; all of them")
    parser.add_argument("--high", type=int, default=0, help="mark, in tokens")
    parser.add_argument("--low", type=int, default=0, help="mark, in tokens")
    parser.add_argument("--sessions", type=int, default=0)
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--time-scale", type=float, default=0)
    parser.add_argument(
        "--pause-ms", type=float, default=0, help="wall time between a turn and the next; 20, with --shapes 8"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the router's environment")
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--vllm", default="", metavar="URL")
    sys.exit(uvloop.run(main(parser.parse_args())))

"""Writes a trace whose load is decoding: short prompts that share nothing, long replies.

    python bench/make_decode_trace.py TARGET.jsonl

A policy that sees only prefill cannot tell a worker with sixty running replies from an idle one; this trace shows the cost
of that. A simulated worker of 64 seats and 30 ms a step replies to about one request of 2,000 tokens a second, so eight
workers saturate near 8.5 requests a second. The default rate is nine tenths of that, which leaves time for prefill.
"""

import argparse
import json
import random
from pathlib import Path

SEED = 7


def make_lines(requests: int, rate: float, input_tokens: int, output_tokens: int, seed: int = SEED) -> list[str]:
    """Poisson arrivals of `rate` a second. Lengths vary by up to half of their mean."""
    dice = random.Random(seed)
    lines, at_s = [], 0.0
    for _ in range(requests):
        row = {
            "timestamp": round(at_s * 1000),
            "input_length": round(input_tokens * dice.uniform(0.5, 1.5)),
            "output_length": round(output_tokens * dice.uniform(0.5, 1.5)),
        }
        lines.append(json.dumps(row, separators=(",", ":")) + "\n")
        at_s += dice.expovariate(rate)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trace whose load is decoding.")
    parser.add_argument("target", type=Path)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=7.6, help="arrivals a second")
    parser.add_argument("--input-tokens", type=int, default=400)
    parser.add_argument("--output-tokens", type=int, default=2000)
    options = parser.parse_args()
    lines = make_lines(options.requests, options.rate, options.input_tokens, options.output_tokens)
    options.target.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()

"""Can a model still answer from its prompt after most of a long conversation has left it?

    python -m bench.planted --dialogues mt-bench-101.jsonl.xz [--sessions 4] [--turns 220] [--seed 1]

Facts are said once in long real dialogues. The conversation continues, and at its end each fact is asked for, half of them
in other words. The reader is a rule, not a model: a question counts as answerable if the fact stands whole, as it was said,
in the prompt of its turn. So the figures are those of a reader that misses nothing. The summariser is a script: it keeps
every so many sentences and does not know the questions. A model's summary would keep other things in other words, which
this rule would not recognise. The ways are those of ``bench.context``, on its simulated fleet: in first-in-first-out the
client keeps the history, the others are sessions of the router.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import msgspec
import uvloop
from aiohttp import ClientSession

from bench.context import MARKS, WINDOW, count_simulated
from bench.context_client import Marks, Sample, Sender, converse
from bench.context_runs import SESSION, Plan, name_of, sender_of, series_of, setting_of, standing
from bench.dialogues import Turn, preamble, read_dialogues
from bench.recall import Dialogue, Fact, plant, read_facts, read_items
from bench.verdict import ServedRouter, conclude
from router.core.request.request import Sid

SYSTEM_TOKENS, ANSWER_TOKENS = 300, 30
TIME_SCALE, PAUSE_S = 20.0, 0.1
MEANING_PAUSE_S = 0.4
"""Pause between turns while this machine's CPU embeds the items. Without it the janitor falls behind, and prompts grow over
their marks."""
QUIET_S, MAX_WAIT_S = 2.0, 120.0
KINDS = ("same_words", "other_words")
BY_MEANING = {"WARMROUTE_CONTEXT__EMBED_MODEL": "all-MiniLM-L6-v2-int8", "WARMROUTE_CONTEXT__RECALL_TIMEOUT_S": "5"}
"""Long time-outs for searches, since other programs use this machine too and their speed is not measured here."""
FULL, FLOOR = "session-none", "first-in-first-out"
WORDS = ", by words alone"
WAYS = (FULL, FLOOR, *(SESSION + name for name in ("window", "summary", "recall", f"hybrid{WORDS}", "hybrid")))
MIN_HYBRID = 0.6


class Question(NamedTuple):
    kind: str
    text: str
    fact: str


class Talk(NamedTuple):
    """A conversation with facts in it, and the questions at its end."""

    turns: list[Turn]
    questions: list[Question]


class Asked(NamedTuple):
    question: Question
    is_answerable: bool
    sample: Sample


class WatchedSender:
    """``sent``: the messages of its newest turn."""

    def __init__(self, inner: Sender) -> None:
        self.path = inner.path
        self._inner = inner
        self.turns = 0
        self.sent: list[bytes] = []

    def messages(self, new: bytes, tokens: int) -> list[bytes]:
        self.turns += 1
        self.sent = self._inner.messages(new, tokens)
        return self.sent

    def answered(self, answer: bytes, tokens: int) -> None:
        self._inner.answered(answer, tokens)


def make_talks(options: argparse.Namespace) -> list[Talk]:
    """Talks with a share of the facts each, half of them asked for in other words. The same seed gives the same talks."""
    chance = random.Random(options.seed)
    said = cycle(read_items(options.dialogues, chance))
    facts = read_facts(options.facts)
    chance.shuffle(facts)
    return [
        talk_of(plant(Sid(f"{number}"), facts[number :: options.sessions], said, 2 * options.turns, chance), chance)
        for number in range(options.sessions)
    ]


def talk_of(dialogue: Dialogue, chance: random.Random) -> Talk:
    """A talk with the users' real items. The simulated worker makes the answers, as long as the real ones."""
    items = dialogue.items
    turns = [
        Turn(asked, max(count_simulated(answer), 1)) for asked, answer in zip(items[::2], items[1::2], strict=True)
    ]
    facts: list[Fact] = list(dialogue.facts.values())
    chance.shuffle(facts)
    questions = [
        Question(kind, fact.questions[kind], fact.text) for fact, kind in zip(facts, cycle(KINDS), strict=False)
    ]
    return Talk(turns, [require_fair(question, turns) for question in questions])


def require_fair(question: Question, turns: Sequence[Turn]) -> Question:
    """Raises ValueError if the talk does not say the fact exactly once, or if the question says it."""
    if sum(_flat(turn.text).count(_flat(question.fact)) for turn in turns) != 1 or _holds(question.text, question):
        raise ValueError(f"this fact cannot be asked for: {question.fact}")
    return question


def _flat(text: str) -> str:
    return " ".join(text.split())


def _holds(text: str, question: Question) -> bool:
    return _flat(question.fact) in _flat(text)


async def play(plan: Plan, way: str, talks: Sequence[Talk], watermarks: Marks) -> dict[str, Any]:
    """Runs all conversations at once, and then all questions."""
    async with standing(plan, way, watermarks) as (http, router, summariser):
        senders = [WatchedSender(sender_of(plan, way, watermarks, number)) for number in range(len(talks))]
        pairs = list(zip(senders, talks, strict=True))
        setting = setting_of(plan, router)
        told = await asyncio.gather(*(converse(http, setting, sender, talk.turns) for sender, talk in pairs))
        if any(len(samples) != len(talk.turns) for samples, talk in zip(told, talks, strict=True)):
            raise RuntimeError("a conversation did not fit the window: fewer turns, please")
        await quiet(http, router)
        asked = await asyncio.gather(
            *(ask_all(http, plan, router, way, number, *pair) for number, pair in enumerate(pairs))
        )
        series = await series_of(http, router)
    return figures_of([one for each in asked for one in each], told, summariser.tokens, series)


async def ask_all(
    http: ClientSession, plan: Plan, router: ServedRouter, way: str, number: int, sender: WatchedSender, talk: Talk
) -> list[Asked]:
    asked = []
    for question in talk.questions:
        (sample,) = await converse(http, setting_of(plan, router), sender, [Turn(question.text, ANSWER_TOKENS)])
        if way.startswith(SESSION):
            texts = await sent_by_router(http, router, name_of(number), sender.turns)
        else:
            texts = [msgspec.json.decode(message)["content"] for message in sender.sent]
        asked.append(Asked(question, any(_holds(text, question) for text in texts), sample))
    return asked


async def sent_by_router(http: ClientSession, router: ServedRouter, session: str, turn: int) -> list[str]:
    """The texts of the messages that the turn's worker received. Raises RuntimeError."""
    async with http.get(f"{router.url}/v1/sessions/{session}/turns/{turn}/prompt") as answer:
        if answer.status != 200:
            raise RuntimeError(f"no prompt of turn {turn}: {answer.status} {await answer.text()}")
        body = msgspec.json.decode(await answer.read())
    return [message["content"] for message in body["messages"]]


async def quiet(http: ClientSession, router: ServedRouter) -> None:
    """Waits until the janitor is done: its counters have not changed for a while. Raises TimeoutError."""
    async with asyncio.timeout(MAX_WAIT_S):
        before: dict[str, float] = {}
        while (now := await series_of(http, router)) != before:
            before = now
            await asyncio.sleep(QUIET_S)


def figures_of(
    asked: Sequence[Asked], told: Sequence[Sequence[Sample]], summary_tokens: int, series: Mapping[str, float]
) -> dict[str, Any]:
    turns = [sample for samples in told for sample in samples] + [one.sample for one in asked]
    by_kind = {kind: [one for one in asked if one.question.kind == kind] for kind in KINDS}
    return {
        "questions": len(asked),
        "answerable": share(asked),
        **{kind.replace("_", " "): share(found) for kind, found in by_kind.items()},
        "prompt_tokens_a_question": round(mean(one.sample.prompt for one in asked)),
        "prompt_tokens_a_turn": round(mean(sample.prompt for sample in turns)),
        "prefill_tokens_a_turn": round(mean(sample.prompt - sample.cached for sample in turns)),
        "summariser_tokens": summary_tokens,
        "series": dict(series),
    }


def share(asked: Sequence[Asked]) -> float:
    return round(mean(float(one.is_answerable) for one in asked), 3)


def claims(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """The claims about the ways that were run."""
    found = {way: figures[way]["answerable"] for way in figures}
    hybrid, summary, window = (found.get(SESSION + name) for name in ("hybrid", "summary", "window"))
    judged = {}
    if FULL in found:
        judged["with the full context everything can be answered: the control"] = found[FULL] == 1.0
    if hybrid is not None:
        judged[f"hybrid: at least {MIN_HYBRID:g} of what the full context answers"] = hybrid >= MIN_HYBRID
    if hybrid is not None and summary is not None and window is not None:
        judged["hybrid answers more than summary, and summary no less than window"] = hybrid > summary >= window
    return judged


async def main(options: argparse.Namespace) -> int:
    talks = make_talks(options)
    figures: dict[str, Any] = {}
    for name in options.ways.split(";") if options.ways else WAYS:
        began = time.monotonic()
        is_by_meaning = not name.endswith(WORDS) and name.endswith(("recall", "hybrid"))
        plan = Plan(
            system=preamble(read_dialogues(options.dialogues), SYSTEM_TOKENS, count_simulated),
            conversations=[talk.turns for talk in talks],
            count=count_simulated,
            window=WINDOW,
            time_scale=TIME_SCALE,
            pause_s=MEANING_PAUSE_S if is_by_meaning else PAUSE_S,
            extra=BY_MEANING if is_by_meaning else {},
        )
        figures[name] = await play(plan, name.removesuffix(WORDS), talks, Marks(options.high, options.low))
        told = {key: figures[name][key] for key in ("answerable", "prompt_tokens_a_question")}
        print(f"{name}: {told}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return conclude(options.name, figures, claims(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=Path, required=True, help="a dialogue a line, as MT-Bench-101 has them")
    parser.add_argument("--facts", type=Path, default=Path(__file__).with_name("recall_facts.jsonl"))
    parser.add_argument("--ways", default="", help=f"with semicolons between them, of: {'; '.join(WAYS)}; all of them")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--turns", type=int, default=220)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--high", type=int, default=MARKS.high, help="mark, in tokens")
    parser.add_argument("--low", type=int, default=MARKS.low, help="mark, in tokens")
    parser.add_argument("--name", default="planted", help="of the file of results")
    sys.exit(uvloop.run(main(parser.parse_args())))

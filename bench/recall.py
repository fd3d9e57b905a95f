"""Does recall find what has left a session's window?

    python -m bench.recall --dialogues FILE [--facts FILE] [--vectors FILE] [--sizes 100,1000,10000]

Facts are planted in long dialogues, some of them in the middle of long items. Each is asked for twice: in the words in
which it was said, and in other words. The dialogues' FILE has lines of JSON with ``history``, a list of
``{"user", "bot"}``; the facts' FILE has lines with ``fact``, ``same_words``, ``other_words``. Every third fact is held
out: the others' figures choose the weights. ``--vectors`` keeps vectors for the next run, but each query is embedded
anew, so that its time counts. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import lzma
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.verdict import conclude, percentile
from router.core.request.request import Sid, Tenant
from router.sessions.recall.embedders.onnx import OnnxEmbedder
from router.sessions.recall.fusion import Weights
from router.sessions.recall.index import Passage
from router.sessions.recall.sqlite import IndexLimits, SqliteIndex

SEED = 20
OWNER = Tenant("ann")
WINDOW_ITEMS = 10
"""The last items of a session. They are still in the prompt, so no search covers them."""
HELD_OUT = 3
BURIED = 4
"""One in this many facts stands in the middle of a long item."""
BURIED_ITEMS = 24
MAX_FACT_SHARE = 0.2
"""Facts among a session's items, at most. So a short session gets only some of the facts."""
ADDED_AT_ONCE = 200
ACKNOWLEDGEMENTS = ("Thanks, I'll keep that in mind.", "Good to know.", "Noted!", "All right, understood.")
RANKINGS = {"words": Weights(1, 0), "meaning": Weights(0, 1), "fused": Weights()}
MIN_RECALL, MAX_P99_MS, MAX_WORDS_RECALL = 0.6, 50.0, 0.5


@dataclass(frozen=True, slots=True)
class Fact:
    text: str
    questions: dict[str, str]
    is_held_out: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A session's items, and the numbers of the items that contain facts."""

    sid: Sid
    items: list[str]
    facts: dict[int, Fact]


class KeptEmbedder:
    """Keeps the vectors of indexed texts. Each query is embedded anew."""

    def __init__(self, inner: OnnxEmbedder, path: Path | None) -> None:
        self.name, self.dimensions = inner.name, inner.dimensions
        self._inner = inner
        self._path = path
        self._kept: dict[str, Any] = {}
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as stored:
                self._kept = dict(zip(stored["texts"].tolist(), stored["vectors"], strict=True))

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if len(texts) == 1:
            return await self._inner.embed(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if missing:
            vectors = np.array(await self._inner.embed(missing), np.float32)
            self._kept.update(zip(missing, vectors, strict=True))
        return [self._kept[text] for text in texts]

    def save(self) -> None:
        if self._path is not None:
            np.savez(self._path, texts=np.array(list(self._kept)), vectors=np.array(list(self._kept.values())))


def read_facts(path: Path) -> list[Fact]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        Fact(line["fact"], {kind: line[kind] for kind in ("same_words", "other_words")}, n % HELD_OUT == HELD_OUT - 1)
        for n, line in enumerate(lines)
    ]


def read_items(path: Path, chance: random.Random) -> list[str]:
    """The items of all dialogues, one dialogue after another."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        dialogues = [json.loads(line)["history"] for line in lines]
    chance.shuffle(dialogues)
    return [said[role] for dialogue in dialogues for said in dialogue for role in ("user", "bot")]


def plant(sid: Sid, facts: Sequence[Fact], said: Iterator[str], size: int, chance: random.Random) -> Dialogue:
    """A session of ``size`` items. A user says each fact, and the next item acknowledges it."""
    places = set(chance.sample(range((size - WINDOW_ITEMS) // 2 - 1), len(facts)))
    left = iter(facts)
    items: list[str] = []
    planted: dict[int, Fact] = {}
    for pair in range(size // 2):
        if pair not in places:
            items += [next(said), next(said)]
            continue
        fact = next(left)
        text = fact.text
        if len(planted) % BURIED == BURIED - 1:
            around = [next(said) for _ in range(BURIED_ITEMS)]
            around.insert(chance.randrange(BURIED_ITEMS), text)
            text = "\n".join(around)
        items += [text, chance.choice(ACKNOWLEDGEMENTS)]
        planted[len(items) - 1] = fact
    return Dialogue(sid, items, planted)


def make_dialogues(said: Sequence[str], facts: Sequence[Fact], size: int) -> list[Dialogue]:
    chance = random.Random(SEED + size)
    order = list(facts)
    chance.shuffle(order)
    count = min(len(order), int(size * MAX_FACT_SHARE / 2))
    groups = [order[at : at + count] for at in range(0, len(order), count)]

    def endless() -> Iterator[str]:
        while True:
            yield from said

    words = endless()
    return [plant(Sid(f"{size}-{n}"), group, words, size, chance) for n, group in enumerate(groups)]


async def fill(index: SqliteIndex, dialogue: Dialogue) -> None:
    passages = [Passage(number, text) for number, text in enumerate(dialogue.items, 1)]
    for at in range(0, len(passages), ADDED_AT_ONCE):
        await index.add(dialogue.sid, OWNER, passages[at : at + ADDED_AT_ONCE])


@dataclass(slots=True)
class Asked:
    """The quality and the speed of one ranking."""

    places: dict[tuple[str, bool], list[int]]
    """By the question's kind and whether its fact is held out: ranks of the fact's item, from 0; 99: not found."""
    took_ms: list[float]
    cpu_ms: list[float]
    """CPU time of the whole process, which does nothing else meanwhile. It excludes other load of the machine."""

    def recall(self, limit: int, kind: str = "", held_out: bool | None = None) -> float:
        places = [
            place
            for (its_kind, is_held_out), found in self.places.items()
            if kind in ("", its_kind) and held_out in (None, is_held_out)
            for place in found
        ]
        return round(sum(place < limit for place in places) / len(places), 3)

    def figures(self) -> dict[str, Any]:
        return {
            "recall": {
                f"@{limit}": {
                    "all": self.recall(limit),
                    "same words": self.recall(limit, "same_words"),
                    "other words": self.recall(limit, "other_words"),
                    "held out": self.recall(limit, held_out=True),
                    "not held out": self.recall(limit, held_out=False),
                }
                for limit in (5, 10)
            },
            "search_ms": shown(self.took_ms),
            "search_cpu_ms": shown(self.cpu_ms),
        }


def shown(times_ms: Sequence[float]) -> dict[str, float]:
    return {"p50": round(percentile(times_ms, 0.5), 1), "p99": round(percentile(times_ms, 0.99), 1)}


async def ask(index: SqliteIndex, dialogues: Sequence[Dialogue]) -> Asked:
    asked = Asked({}, [], [])
    for dialogue in dialogues:
        upto = len(dialogue.items) - WINDOW_ITEMS
        for number, fact in dialogue.facts.items():
            for kind, question in fact.questions.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                found = list(await index.search(dialogue.sid, OWNER, question, upto=upto, limit=10))
                asked.took_ms.append((time.perf_counter() - start) * 1e3)
                asked.cpu_ms.append((time.process_time() - cpu_start) * 1e3)
                place = found.index(number) if number in found else 99
                asked.places.setdefault((kind, fact.is_held_out), []).append(place)
    return asked


async def measure(embedder: KeptEmbedder, dialogues: Sequence[Dialogue], path: Path) -> dict[str, Asked]:
    found = {}
    for ranking, weights in RANKINGS.items():
        index = await SqliteIndex.open(path, embedder, IndexLimits(search_timeout_s=10, embed_timeout_s=10), weights)
        try:
            for dialogue in dialogues:
                await fill(index, dialogue)
            await ask(index, dialogues[:1])
            found[ranking] = await ask(index, dialogues)
        finally:
            await index.close()
    return found


def judge(found: dict[int, dict[str, Asked]]) -> dict[str, bool]:
    everywhere = list(found.values())
    return {
        "words alone find at most half of what is asked in other words": all(
            by["words"].recall(10, "other_words") <= MAX_WORDS_RECALL for by in everywhere
        ),
        "fused is at least as good as words and as meaning alone": all(
            by["fused"].recall(limit) >= max(by["words"].recall(limit), by["meaning"].recall(limit))
            for by in everywhere
            for limit in (5, 10)
        ),
        f"fused finds {MIN_RECALL} at 10, of the facts held out too": all(
            by["fused"].recall(10, held_out=held_out) >= MIN_RECALL for by in everywhere for held_out in (None, True)
        ),
        f"99 of 100 searches take {MAX_P99_MS:.0f} ms at most": all(
            percentile(by["fused"].took_ms, 0.99) <= MAX_P99_MS for by in everywhere
        ),
    }


async def run(options: argparse.Namespace) -> int:
    said = read_items(options.dialogues, random.Random(SEED))
    facts = read_facts(options.facts)
    inner = await OnnxEmbedder.open()
    embedder = KeptEmbedder(inner, options.vectors)
    found = {}
    try:
        for size in map(int, options.sizes.split(",")):
            dialogues = make_dialogues(said, facts, size)
            with TemporaryDirectory() as directory:
                found[size] = await measure(embedder, dialogues, Path(directory, "recall.db"))
            print(f"{size} items: {found[size]['fused'].figures()}", file=sys.stderr)
    finally:
        embedder.save()
        await inner.close()
    figures = {
        "facts": len(facts),
        "model": inner.name,
        "by items": {
            str(size): {ranking: asked.figures() for ranking, asked in by.items()} for size, by in found.items()
        },
    }
    return conclude(options.name, figures, judge(found))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.recall", description=__doc__)
    parser.add_argument("--dialogues", type=Path, required=True)
    parser.add_argument("--facts", type=Path, default=Path(__file__).with_name("recall_facts.jsonl"))
    parser.add_argument("--vectors", type=Path, help="an .npz file")
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--name", default="recall", help="of the file of results")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())

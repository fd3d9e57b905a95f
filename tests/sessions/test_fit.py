"""Whatever is said, and however much: a prompt fits its window, nothing is torn apart in it, system messages and tools are in
it, between two cuts it grows at its end only, and the log has everything. Counted by a real tokenizer, over the whole way of a
turn."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from router.core.errors import ContextTooLong, SessionNotFound
from router.sessions.context.cut_points import TOOL_ROLES, balanced_cuts
from router.sessions.context.history import History
from router.sessions.context.messages import SYSTEM_ROLES
from router.sessions.context.provenance import OMITTED, RECALL_BEGIN, RECALL_END, SUMMARY_BEGIN, SUMMARY_END
from router.sessions.context.view import WHOLE, View, summary_tokens
from router.sessions.context.watermarks import MARGIN
from router.sessions.tokens.vocabularies import load_tokenizer_json
from tests.sessions.counting_worker import ANSWER_TOKENS, CountText, Message, Play
from tests.sessions.desk import said, user

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind. ",
    'def rank(self, facts: Facts) -> Ranking:\n    return [{"name": name, "cost": 0x1F} for name in facts]\n',
    "Wir haben uns gestern über die Größe des Zwischenspeichers unterhalten. ",
    "会話の履歴は窓に収まり、温かいままです。",
    "🦊🐕‍🦺 \u200d\t \n\n\x00 <|im_end|> }}}{{{ ",
)
FACTS = Path(__file__).parents[2] / "bench" / "recall_facts.jsonl"
STRATEGIES = ("window", "summary", "recall", "hybrid")
EXAMPLES = int(os.environ.get("FIT_EXAMPLES", "0"))
"""So many plays, each time others; none: the same few."""
PHASES = [Phase.generate, *([Phase.shrink] if EXAMPLES else [])]
"""To make a play shorter takes minutes."""
FIXTURE = [HealthCheck.function_scoped_fixture]
RECALLED_TOKENS = 130
"""What is recalled is bounded by its bytes, with what bytes there are to a token: so about."""


@pytest.fixture(scope="session")
def count_text(tmp_path_factory: pytest.TempPathFactory) -> CountText:
    """A tokenizer.json that knows some English."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    english = [SUMMARY_BEGIN, SUMMARY_END, OMITTED, RECALL_BEGIN, RECALL_END] * 2
    tokenizer.train_from_iterator([*TEXTS[:3], *english, FACTS.read_text("utf-8")], trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return load_tokenizer_json(file)


class Step(NamedTuple):
    """One turn: what the user says, and what the model does about it."""

    text: str
    has_image: bool
    instructions: str
    """System messages of this turn alone; empty: none."""
    system: str
    """That comes first, and holds from now on; empty: as before."""
    aside: str
    """A system message in the midst; empty: none."""
    tools: int
    """So many are sent; -1: as before."""
    calls: list[list[str]]
    """Results of each step of the model's work."""
    answer: str
    cleans: bool
    """The compactor comes by behind it."""


def texts(max_size: int) -> st.SearchStrategy[str]:
    return st.builds(lambda text, size: (text * size)[: 12 * size], st.sampled_from(TEXTS), st.integers(1, max_size))


def seldom(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 7).flatmap(lambda lot: texts if lot == 0 else st.just(""))


@st.composite
def steps(draw: st.DrawFn, max_size: int = 40) -> Step:
    return Step(
        text=draw(texts(max_size)) * draw(st.sampled_from([1] * 9 + [30])),
        has_image=draw(st.integers(0, 9)) == 0,
        instructions=draw(seldom(texts(20))),
        system=draw(seldom(texts(20))),
        aside=draw(seldom(texts(5))),
        tools=draw(st.sampled_from([-1, -1, -1, -1, 0, 1, 4])),
        calls=draw(st.lists(st.lists(texts(30), min_size=1, max_size=3), max_size=3)),
        answer=draw(texts(4)),
        cleans=draw(st.booleans()),
    )


def tool(number: int) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"where": {"type": "string", "description": TEXTS[0]}}}
    return {"type": "function", "function": {"name": f"look_{number}", "parameters": parameters}}


class Drama:
    """Plays steps, and holds each prompt against what it promises."""

    def __init__(self, count_text: CountText, window: int, strategy: str) -> None:
        self.play = Play(count_text, window, strategy)
        self.said: list[Message] = []
        self.system: list[Message] = []
        self.tools: list[Any] = []
        self.instructions: list[Message] = []
        self.calls = 0
        self.before: tuple[View, list[Message], list[Message]] | None = None

    async def take(self, step: Step) -> None:
        self.instructions = [system(step.instructions)] if step.instructions else []
        first = [system(step.system)] if step.system else []
        tools = None if step.tools < 0 else [tool(number) for number in range(step.tools)]
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        asked = (
            {"role": "user", "content": [{"type": "text", "text": step.text}, image]}
            if step.has_image
            else user(step.text)
        )
        new = [user("by the way"), system(step.aside), asked] if step.aside else [asked]
        for results in step.calls:
            names = [f"c{self.calls + at}" for at in range(len(results))]
            self.calls += len(names)
            if not await self.say(first, new, tools, calls(names)):
                return
            first, tools = [], None
            new = [result(name, text) for name, text in zip(names, results, strict=True)]
        await self.say(first, new, tools, said(step.answer))
        if step.cleans:
            await self.play.clean()

    async def say(self, first: list[Message], new: list[Message], tools: list[Any] | None, answer: Message) -> bool:
        """False: it was refused, by the worker or already by the router, as it had to be."""
        beside = [*self.instructions, *(first or self.system), *new], self.tools if tools is None else tools
        least, view = await self.least(*beside), await self.view()
        try:
            client = await self.play.say(*first, *new, answer=answer, tools=tools, instructions=self.instructions)
            status = client.reply.status if client.reply is not None else 0
        except ContextTooLong as error:
            status = error.status
        if status != 200:
            assert least > self.limit, f"{least} tokens would have fitted {self.limit}"
            if self.play.worker.size(*beside) > self.limit + SLACK_TOKENS:
                assert await self.view() == view, "nothing is cut for what cannot fit"
            return False
        self.system, self.tools = first or self.system, self.tools if tools is None else tools
        self.said += [*new, answer]
        await self.check()
        return True

    @property
    def limit(self) -> float:
        return self.play.worker.window * (1.0 - MARGIN) - ANSWER_TOKENS

    async def view(self) -> View:
        try:
            return (await self.play.history()).view
        except SessionNotFound:
            return WHOLE

    async def least(self, new: list[Message], tools: list[Any]) -> int:
        """Tokens of the shortest prompt that there can be, with room for what is put in."""
        worker = self.play.worker
        if not self.said:
            return worker.size(new, tools)
        history = await self.play.history()
        items, question = history.items[history.start :], history.question()
        cuts = balanced_cuts(items, question)
        at, question = (cuts[-1].at, cuts[-1].question) if cuts else (0, question)
        left = [msgspec.json.decode(item.sent) for item in items[at:]]
        kept = [msgspec.json.decode(question.body)] if question is not None else []
        put_in = summary_tokens(history.view.ready) + (RECALLED_TOKENS if history.start else 0)
        return worker.size([*asides(history, at), *kept, *EMPTY_NOTES, *left, *new], tools) + put_in

    async def check(self) -> None:
        history, prompt = await self.play.history(), self.play.prompt
        messages, first = prompt["messages"], [*self.instructions, *self.system]
        assert [msgspec.json.decode(item.body) for item in history.items] == self.said, "the log has everything"
        assert messages[: len(first)] == first
        assert prompt.get("tools", []) == self.tools
        assert system_texts(messages[len(first) :]) == system_texts(self.said), "a system message is never cut"
        require_balanced(messages)
        view = msgspec.structs.replace(history.view, pending=[], work=None)
        if self.before is not None and self.before[:2] == (view, first):
            assert messages[: len(self.before[2])] == self.before[2], "it grows at its end"
        self.before = view, first, messages


EMPTY_NOTES = [user(""), said("")]
SLACK_TOKENS = 100
"""By which the router may be mistaken while it learns what a template adds."""


def asides(history: History, at: int) -> list[Message]:
    """The system messages before what is left, if so many more items are cut."""
    gone = history.items[: history.start + at]
    return [msgspec.json.decode(item.body) for item in gone if item.role in SYSTEM_ROLES]


def system_texts(messages: list[Message]) -> set[str]:
    return {message["content"] for message in messages if message["role"] == "system"}


def calls(names: list[str]) -> Message:
    made = [
        {"id": name, "type": "function", "function": {"name": "look_0", "arguments": '{"where":"there"}'}}
        for name in names
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def result(name: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": name, "content": text}


def require_balanced(messages: list[Message]) -> None:
    open_calls: set[str] = set()
    has_asked = False
    for message in messages:
        if message["role"] in TOOL_ROLES:
            assert message["tool_call_id"] in open_calls, "a result without its call"
        elif message["role"] == "assistant":
            assert has_asked, "an answer without its question"
            open_calls |= {call["id"] for call in message.get("tool_calls") or ()}
        has_asked = has_asked or message["role"] == "user"


async def perform(drama: Drama, steps: list[Step]) -> None:
    for step in steps:
        await drama.take(step)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=EXAMPLES or 20, derandomize=not EXAMPLES, phases=PHASES, suppress_health_check=FIXTURE)
@given(st.lists(steps(), min_size=3, max_size=12), st.integers(600, 2400))
def test_whatever_was_said_the_prompt_fits_and_is_whole(
    count_text: CountText, strategy: str, steps: list[Step], window: int
) -> None:
    drama = Drama(count_text, window, strategy)
    asyncio.run(perform(drama, steps))

"""What keeps histories within their windows shows itself: each metric moves with what it says, in a router that serves."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from router.app.serve import Running
from router.sessions.compactor import COMMITTED
from tests.e2e.faults import metric
from tests.e2e.routed import get, get_admin, routed, until
from tests.server.keys import ACME, BETA, bearer, entry, keyed
from tests.sessions.api.test_metrics import becomes, by_label, say, saying, serving
from tests.upstream.scripted import Asked, Peer, answer, scripted

LONG = "word " * 400
"""About 500 tokens, of which everything is cut that may be."""
ALWAYS = {"context__high_tokens": 10, "context__low_tokens": 5}
SELDOM = {"context__high_tokens": 10**6, "context__low_tokens": 5}
NOTES = "Write notes on the conversation"
"""How the request for notes begins."""
CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def completion(content: str, prompt_tokens: int = 100, tokens: int = 3, **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return json.dumps({"id": "c-1", "created": 1, "model": "m", "choices": [choice], "usage": usage}).encode()


class Notes:
    """A worker that answers turns, and writes ``reply`` where it is asked for notes: once it may, if it is ``held``."""

    def __init__(self, reply: bytes = completion("They spoke.", 400, 7)) -> None:
        self.reply = answer(reply)
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.asked = 0

    def held(self) -> Notes:
        self.may_write.clear()
        return self

    async def __call__(self, asked: Asked, peer: Peer) -> None:
        if NOTES.encode() not in asked.body:
            await peer.send(answer(completion("hi")))
            return
        self.asked += 1
        await self.may_write.wait()
        await peer.send(self.reply)


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def compacted(router: Running, result: str, times: int = 1) -> None:
    """Wait until that has come of so many looks."""
    await becomes(router, "compactions_total", lambda looks: looks == times, result=result)


def stored_in(directory: Path) -> Mapping[str, str]:
    return {"sessions__store": f"sqlite://{directory}/sessions.db", "sessions__state_dir": str(directory)}


# --- tokens, and why prefixes broke


@pytest.mark.parametrize(
    ("strategy", "result"), [("window", "cut"), ("summary", "summarized"), ("recall", "cut"), ("hybrid", "summarized")]
)
async def test_what_a_cut_spares_is_what_whole_logs_would_have_over_what_was_sent(strategy: str, result: str) -> None:
    async with serving(Notes(), **ALWAYS, context__strategy=strategy) as (_, router):
        await say(router, **user(LONG))
        await compacted(router, result)
        whole = await metric(router, "warmroute_context_raw_tokens_total", strategy=strategy)
        assert whole == await metric(router, "warmroute_context_sent_tokens_total", strategy=strategy) > 400
        await say(router, **user("and now?"))
        raw = await metric(router, "warmroute_context_raw_tokens_total", strategy=strategy)
        sent = await metric(router, "warmroute_context_sent_tokens_total", strategy=strategy)
        assert raw > 2 * whole
        assert whole < sent < 1.5 * whole
        assert await metric(router, "warmroute_context_raw_tokens_total") == raw, "and of no other strategy"
        assert await metric(router, "warmroute_context_sent_tokens_total") == sent


async def test_where_nothing_is_cut_whole_logs_are_sent() -> None:
    async with serving(**ALWAYS, context__strategy="none") as (_, router):
        for _ in range(3):
            await say(router, **user(LONG))
        raw = await metric(router, "warmroute_context_raw_tokens_total", strategy="none")
        assert raw == await metric(router, "warmroute_context_sent_tokens_total") > 1000
        assert await metric(router, "warmroute_compactions_total") == 0


async def test_a_cut_breaks_a_prefix_and_what_is_computed_again_is_counted() -> None:
    async with serving(saying(10), **ALWAYS, context__strategy="window") as (_, router):
        await say(router, **user(LONG))
        await compacted(router, "cut")
        assert await metric(router, "warmroute_prefix_breaks_total") == 0
        await say(router)
        assert await metric(router, "warmroute_prefix_breaks_total", cause="compaction") == 1
        assert await metric(router, "warmroute_prefix_breaks_total") == 1
        assert 80 < await metric(router, "warmroute_recomputed_tokens_total") < 90, "of 100 but 10, and the question"


@pytest.mark.parametrize(
    ("cause", "members"),
    [
        ("system_changed", ({"role": "system", "content": "be brief"}, {"role": "system", "content": "be long"})),
        ("tools_changed", ({"type": "function", "function": {"name": "f"}}, {"type": "function"})),
    ],
)
async def test_what_a_client_changed_before_a_history_broke_its_prefix(
    cause: str, members: tuple[dict[str, Any], ...]
) -> None:
    async with serving() as (_, router):
        for at, member in enumerate(members):
            question = {"role": "user", "content": f"question {at}"}
            if cause == "system_changed":
                await say(router, messages=[member, question])
            else:
                await say(router, messages=[question], tools=[member])
            assert await metric(router, "warmroute_prefix_breaks_total", cause=cause) == at
        assert await metric(router, "warmroute_prefix_breaks_total") == 1


@pytest.mark.parametrize(("cached", "breaks"), [(5, 1), (90, 0)])
async def test_another_model_breaks_a_prefix_that_it_has_not(cached: int, breaks: int) -> None:
    async with scripted(saying(cached), models=("m", "n")) as worker, routed(worker.url) as router:
        await say(router)
        await say(router, model="n")
        assert await metric(router, "warmroute_prefix_breaks_total", cause="adapter_changed") == breaks
        assert await metric(router, "warmroute_prefix_breaks_total") == breaks


@pytest.mark.parametrize(("cached", "breaks"), [(5, 1), (90, 0)])
async def test_another_worker_breaks_a_prefix_that_it_has_not(cached: int, breaks: int) -> None:
    async with (
        scripted(saying(cached)) as one,
        scripted(saying(cached)) as other,
        routed(one.url, other.url) as router,
    ):
        await say(router)
        (first,) = (worker for worker in (one, other) if worker.asked)
        first.script = busy
        await say(router)
        assert len(one.asked) + len(other.asked) == 3
        assert await metric(router, "warmroute_prefix_breaks_total", cause="moved") == breaks
        assert await metric(router, "warmroute_prefix_breaks_total") == breaks


async def busy(_asked: Asked, peer: Peer) -> None:
    await peer.send(answer(b"{}", 503))


# --- what comes of the compactor's looks


@pytest.mark.parametrize(
    ("result", "notes"),
    [
        ("summarized", completion("They spoke.", 400, 7)),
        ("rejected_empty", completion("", 400, 7)),
        ("rejected_refusal", completion("I'm sorry, I can't do that.", 400, 7)),
        ("rejected_longer", completion("They spoke.", 400, 7_000)),
    ],
)
async def test_summaries_are_counted_by_what_came_of_them_and_by_what_they_cost(result: str, notes: bytes) -> None:
    async with serving(Notes(notes), **ALWAYS, context__strategy="summary") as (_, router):
        await say(router, **user(LONG))
        await compacted(router, result)
        assert await metric(router, "warmroute_compactions_total") == 1
        cost = {"prompt": 400, "summary": json.loads(notes)["usage"]["completion_tokens"]}
        assert await by_label(router, "janitor_tokens_total", "kind", "prompt", "summary") == cost
        assert await metric(router, "warmroute_compaction_lag_seconds_count") == (result in COMMITTED)


async def test_summaries_that_no_worker_wrote_are_counted_as_failed() -> None:
    notes = Notes()
    notes.reply = answer(b"{}", 500)
    async with serving(notes, **ALWAYS, context__strategy="summary") as (_, router):
        await say(router, **user(LONG))
        await compacted(router, "failed")
        assert await metric(router, "warmroute_janitor_tokens_total") == 0
        assert await metric(router, "warmroute_compaction_lag_seconds_count") == 0


async def test_summaries_that_would_cost_more_than_a_day_has_are_not_asked_for() -> None:
    notes = Notes()
    settings = {**ALWAYS, "context__strategy": "summary", "context__summary_tokens_per_day": 100}
    async with serving(notes, **settings) as (_, router):
        await say(router, **user(LONG))
        await compacted(router, "over_budget")
        assert notes.asked == 0


async def test_a_history_without_a_place_to_cut_is_left_as_it_is() -> None:
    async def call(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer(completion("", tool_calls=[CALL])))

    async with serving(call, **ALWAYS, context__strategy="window") as (_, router):
        await say(router, **user(LONG))
        await compacted(router, "nothing")
        assert await metric(router, "warmroute_compaction_lag_seconds_count") == 0


async def test_a_prompt_that_did_not_fit_is_counted_as_cut_in_its_turn_and_its_summaries_as_pending() -> None:
    async with serving(Notes(), **SELDOM, context__strategy="summary") as (_, router):
        await say(router, **user(LONG))
        assert await metric(router, "warmroute_compactions_total") == 0
        await say(router, "s", "x-warmroute-context-tokens: 100")
        assert await metric(router, "warmroute_compactions_total", result="ceiling") == 1
        await compacted(router, "pending")
        assert await metric(router, "warmroute_compactions_total") == 2
        assert await metric(router, "warmroute_compaction_lag_seconds_count") == 1


async def test_sessions_that_wait_for_the_compactor_are_counted_and_bounded() -> None:
    notes = Notes().held()
    settings = {**ALWAYS, "context__strategy": "summary", "context__compactors": 1, "context__max_waiting": 1}
    async with serving(notes, **settings) as (_, router):
        assert await metric(router, "warmroute_max_compactions_waiting") == 1
        await say(router, "a", **user(LONG))
        await until(lambda: notes.asked)
        assert await metric(router, "warmroute_compactions_waiting") == 0
        await say(router, "b", **user(LONG))
        assert await metric(router, "warmroute_compactions_waiting") == 1
        await say(router, "c", **user(LONG))
        assert await metric(router, "warmroute_compactions_total", result="dropped") == 1
        notes.may_write.set()
        await compacted(router, "summarized", 2)
        assert await metric(router, "warmroute_compactions_waiting") == 0


async def test_the_lag_of_a_cut_has_its_summaries_in_it() -> None:
    notes = Notes().held()
    async with serving(notes, **ALWAYS, context__strategy="summary") as (_, router):
        await say(router, **user(LONG))
        await until(lambda: notes.asked)
        asked_at = monotonic()
        assert await metric(router, "warmroute_compaction_lag_seconds_count") == 0
        waited_s = monotonic() - asked_at
        notes.may_write.set()
        await compacted(router, "summarized")
        assert await metric(router, "warmroute_compaction_lag_seconds_count") == 1
        assert await metric(router, "warmroute_compaction_lag_seconds_sum") >= waited_s


async def test_a_replica_that_finds_another_at_the_summaries_counts_a_race(tmp_path: Path) -> None:
    notes = Notes().held()
    settings = {**ALWAYS, **stored_in(tmp_path), "context__strategy": "summary"}
    async with (
        scripted(notes) as worker,
        routed(worker.url, **settings) as one,
        routed(worker.url, **settings) as other,
    ):
        await say(one, **user(LONG))
        await until(lambda: notes.asked)
        await say(other, **user(LONG))
        await compacted(other, "raced")
        notes.may_write.set()
        await compacted(one, "summarized")
        assert notes.asked == 1


async def test_summaries_on_a_session_that_began_anew_meanwhile_are_counted_as_stale() -> None:
    notes = Notes().held()
    async with serving(notes, **ALWAYS, context__strategy="summary", context__compactors=1) as (_, router):
        await say(router, **user(LONG))
        await until(lambda: notes.asked)
        assert (await get(router, "/v1/sessions/s", method="DELETE")).status == 200
        await say(router, "s", "x-warmroute-context-strategy: none")
        notes.may_write.set()
        await compacted(router, "stale")


async def test_what_is_left_of_a_tenants_day_shrinks_by_what_its_summaries_cost(tmp_path: Path) -> None:
    listed = "[tenants.acme]\nsummary_tokens_per_day = 5000\n[tenants.beta]\n"
    listed += entry("acme-1", "acme", ACME) + entry("beta-1", "beta", BETA)
    keys = keyed(tmp_path / "keys.toml", listed)
    async with serving(Notes(), **ALWAYS, **keys, context__strategy="summary") as (_, router):
        assert await metric(router, "warmroute_tenant_summary_tokens_left", tenant="acme") == 5000
        for times, key in enumerate((BETA, ACME), 1):
            await say(router, "s", bearer(key), **user(LONG))
            await compacted(router, "summarized", times)
        assert await metric(router, "warmroute_tenant_summary_tokens_left", tenant="acme") == 5000 - 407
        assert await metric(router, "warmroute_tenant_summary_tokens_left") == 5000 - 407, (
            "who has no bound has no series"
        )


# --- recall


RECALL = {**ALWAYS, "context__strategy": "recall", "context__recall_timeout_s": 5}


async def test_searches_are_counted_by_what_they_found_and_timed() -> None:
    async with serving(**RECALL) as (_, router):
        await say(router, **user(f"my cat is called Mimi {LONG}"))
        await compacted(router, "cut")
        assert await metric(router, "warmroute_recalls_total") == 0
        for times, (question, outcome) in enumerate((("the cat", "found"), ("a zebra", "nothing")), 1):
            await say(router, **user(question))
            assert await metric(router, "warmroute_recalls_total", outcome=outcome) == 1
            assert await metric(router, "warmroute_recalls_total") == times
            assert await metric(router, "warmroute_recall_duration_seconds_count") == times
        assert 0 < await metric(router, "warmroute_recall_duration_seconds_sum") < 10
        assert await metric(router, "warmroute_recalls_by_words_alone_total") == 0, "there is no embedder"


async def test_an_index_whose_file_is_broken_is_counted_and_fails_no_turn(tmp_path: Path) -> None:
    async with serving(**{**RECALL, **stored_in(tmp_path)}) as (_, router):
        await say(router, **user(LONG))
        await compacted(router, "cut")
        assert await metric(router, "warmroute_recall_index_failures_total") == 0
        with closing(sqlite3.connect(tmp_path / "recall.db")) as other:
            other.execute("DROP TABLE session")
        assert (await say(router, **user(f"a word {LONG}"))).status == 200
        assert await metric(router, "warmroute_recalls_total", outcome="unavailable") == 1
        assert await metric(router, "warmroute_recalls_total") == 1
        await becomes(router, "recall_index_failures_total", lambda failures: failures == 1)
        assert (await get(router, "/v1/sessions/s", method="DELETE")).status == 200
        assert await metric(router, "warmroute_recall_index_failures_total") == 2


@pytest.mark.parametrize("is_late", [False, True], ids=["refuses", "is late"])
async def test_a_question_that_was_not_embedded_is_searched_for_by_words_alone(is_late: bool) -> None:
    async def embed(asked: Asked, peer: Peer) -> None:
        texts = json.loads(asked.body)["input"]
        if texts == ["the cat"] and is_late:
            await peer.gone()
        data = [{"index": at, "embedding": [1.0, 0.0]} for at in range(len(texts))]
        await peer.send(answer(json.dumps({"data": data}).encode(), 500 if texts == ["the cat"] else 200))

    async with scripted(embed) as service:
        embedder = {"context__embed_url": f"{service.url}/v1/embeddings", "context__embed_model": "e"}
        settings = {**RECALL, **embedder, "context__embed_dimensions": 2, "context__recall_timeout_s": 1}
        async with serving(**settings) as (_, router):
            await say(router, **user(f"my cat is called Mimi {LONG}"))
            await compacted(router, "cut")
            await say(router, **user("a zebra"))
            assert await metric(router, "warmroute_recalls_by_words_alone_total") == 0
            await say(router, **user("the cat"))
            assert await metric(router, "warmroute_recalls_by_words_alone_total") == 1
            assert await metric(router, "warmroute_recalls_total", outcome="unavailable") == 0


async def test_calls_that_wait_for_the_index_are_counted_and_bounded(tmp_path: Path) -> None:
    settings = {**RECALL, **stored_in(tmp_path)}
    async with serving(**settings) as (_, router):
        assert await metric(router, "warmroute_max_recall_calls") == 256
        assert await metric(router, "warmroute_recall_calls") == 0
        with closing(sqlite3.connect(tmp_path / "recall.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await say(router, **user(LONG))
            await becomes(router, "recall_calls", lambda calls: calls == 1)
        await compacted(router, "cut")
        assert await metric(router, "warmroute_recall_calls") == 0


async def test_what_the_index_takes_is_told_and_what_it_had_no_room_for() -> None:
    async with serving(**RECALL, context__max_recall_bytes=3000) as (_, router):
        assert await metric(router, "warmroute_max_recall_bytes") == 3000
        assert await metric(router, "warmroute_recall_bytes") == 0
        for cuts, name in enumerate("ab", 1):
            await say(router, name, **user(LONG))
            await compacted(router, "cut", cuts)
            assert 2000 < await metric(router, "warmroute_recall_bytes") < 3000
        assert await by_label(router, "recall_evictions_total", "kind", "sessions", "pieces") == {
            "sessions": 1,
            "pieces": 0,
        }


async def test_without_an_index_nothing_is_told_of_its_size() -> None:
    async with serving(context__recall_index="none") as (_, router):
        assert "warmroute_recall_bytes" not in (await get_admin(router, "/metrics")).body.decode()
        assert await metric(router, "warmroute_max_recall_calls") == 0

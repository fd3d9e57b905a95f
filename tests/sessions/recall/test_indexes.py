"""Every index keeps the contract in ``router.sessions.recall.index``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.core.request.request import Sid, Tenant
from router.sessions.recall.index import IndexUnavailable, Passage, RecallIndex
from tests.sessions.recall.contract import INDEXES, KINDS, LetterEmbedder

SID, OTHER_SID = Sid("sid"), Sid("other")
ANN, BOB = Tenant("ann"), Tenant("bob")
SECRETS = [Passage(1, "the vault opens with 4711"), Passage(2, "sid ann bob OR AND NOT NEAR text word owner")]

SYNTAX = [
    '"', '""', "'", "' OR '1'='1", "*", "vault*", "^vault", "text:vault", "-vault", "vault OR bob", "vault AND bob", "NOT bob",
    "NEAR(vault bob, 5)", "(vault", "{text} : vault", "vault + bob", "; DROP TABLE session; --", "vault\0bob", "%", "_", "\\",
    "vault' UNION SELECT id FROM passage --", "$1", "?", ":sid", "vault:*", "!vault", "vault & bob", "vault <-> bob", "<4>",
]  # fmt: skip
QUERIES = st.one_of(
    st.sampled_from(SYNTAX),
    st.lists(st.sampled_from([*SYNTAX, "vault", "4711", "ann", "sid"]), max_size=5).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["words", "vectors"])
async def index(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RecallIndex]:
    async with INDEXES[kind](tmp_path, LetterEmbedder() if request.param else None) as opened:
        yield opened


async def find(index: RecallIndex, query: str, owner: Tenant = ANN, sid: Sid = SID, upto: int = 1 << 20) -> list[int]:
    return list(await index.search(sid, owner, query, upto=upto, limit=100))


async def test_an_item_is_found_by_its_words(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(1, "the cat is called Minka"), Passage(2, "the train leaves at noon")])
    assert (await find(index, "what is our cat called?"))[0] == 1
    assert (await find(index, "when leaves the TRAIN"))[0] == 2


async def test_words_are_found_in_another_form(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(1, "zzzz"), Passage(2, "we deployed the servers to Zürich"), Passage(3, "qqqq")])
    assert (await find(index, "deploying a server"))[0] == 2
    assert (await find(index, "zurich"))[0] == 2


async def test_a_rare_word_decides_against_many_common_ones(kind: str, tmp_path: Path) -> None:
    common = [Passage(n, f"what is the name of it and where is the thing {n}") for n in range(1, 30)]
    async with INDEXES[kind](tmp_path, None) as index:
        await index.add(SID, ANN, [*common, Passage(30, "Otto: harpsichord")])
        assert (await find(index, "what is the name of the harpsichord and where is it"))[0] == 30


async def test_another_sessions_words_make_none_rare_or_common(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(1, "salt salt"), Passage(2, "pepper pepper"), Passage(3, "salt")])
    before = await find(index, "salt or pepper")
    await index.add(SID, BOB, [Passage(n, "pepper") for n in range(1, 200)])
    assert await find(index, "salt or pepper") == before


async def test_what_is_said_late_in_a_long_item_is_found(index: RecallIndex) -> None:
    filler = "Some sentence about nothing in particular. " * 450
    await index.add(SID, ANN, [Passage(1, filler), Passage(2, filler + "The gate's code is 9317."), Passage(3, filler)])
    assert (await find(index, "gate code 9317"))[0] == 2


async def test_a_long_item_is_found_once(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(1, "tell me about whales. " * 500)])
    assert await find(index, "whales") == [1]


@pytest.mark.parametrize("query", ["", "   ", "?!", "\0", '"', "* - :", "\N{SLIGHTLY SMILING FACE}"])
async def test_a_query_of_no_words_finds_nothing(index: RecallIndex, query: str) -> None:
    await index.add(SID, ANN, SECRETS)
    assert await find(index, query) == []


async def test_only_items_up_to_the_given_one_are_found(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(n, "apple") for n in (3, 5, 8)])
    found = {upto: sorted(await find(index, "apple", upto=upto)) for upto in (-1, 0, 2, 3, 7, 8)}
    assert found == {-1: [], 0: [], 2: [], 3: [3], 7: [3, 5], 8: [3, 5, 8]}


async def test_no_more_items_are_found_than_asked_for(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(n, "apple") for n in range(1, 20)])
    assert len(await index.search(SID, ANN, "apple", upto=100, limit=7)) == 7


async def test_the_newest_of_equals_comes_first(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(n, "apple") for n in range(1, 6)])
    assert await find(index, "apple") == [5, 4, 3, 2, 1]


async def test_newest_is_the_greatest_number_that_was_added(index: RecallIndex) -> None:
    assert await index.newest(SID, ANN) == 0
    await index.add(SID, ANN, [Passage(2, "two"), Passage(7, "")])
    assert await index.newest(SID, ANN) == 7
    assert await index.newest(SID, BOB) == 0
    assert await index.newest(OTHER_SID, ANN) == 0


async def test_what_is_added_again_stays_as_it_was(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(1, "apple"), Passage(2, "quince")])
    await index.add(SID, ANN, [Passage(1, "xylophone"), Passage(2, "quince"), Passage(3, "quince")])
    assert sorted(await find(index, "quince"))[-2:] == [2, 3]
    assert (await find(index, "apple"))[0] == 1
    assert await index.newest(SID, ANN) == 3


async def test_nothing_added_changes_nothing(index: RecallIndex) -> None:
    await index.add(SID, ANN, [])
    assert await index.newest(SID, ANN) == 0


async def test_a_forgotten_session_has_nothing_and_others_keep_theirs(index: RecallIndex) -> None:
    await index.add(SID, ANN, SECRETS)
    await index.add(SID, BOB, [Passage(1, "the vault of Bob")])
    await index.add(OTHER_SID, ANN, [Passage(1, "another vault")])
    await index.forget(SID, ANN)
    assert await index.newest(SID, ANN) == 0
    assert await find(index, "vault") == []
    assert await find(index, "vault", BOB) == [1]
    assert await find(index, "vault", ANN, OTHER_SID) == [1]


async def test_a_forgotten_session_may_begin_again(index: RecallIndex) -> None:
    await index.add(SID, ANN, SECRETS)
    await index.forget(SID, ANN)
    await index.add(SID, ANN, [Passage(1, "apple")])
    assert await find(index, "vault apple") == [1]


async def test_forgetting_what_is_not_there_is_no_error(index: RecallIndex) -> None:
    await index.add(SID, ANN, SECRETS)
    await index.forget(SID, BOB)
    await index.forget(OTHER_SID, ANN)
    assert await index.newest(SID, ANN) == 2


@pytest.mark.parametrize("embeds", [False, True])
async def test_a_stranger_with_the_same_session_finds_nothing_whatever_the_query(
    kind: str, embeds: bool, tmp_path: Path
) -> None:
    async with INDEXES[kind](tmp_path, LetterEmbedder() if embeds else None) as index:
        await index.add(SID, ANN, SECRETS)
        await index.add(OTHER_SID, BOB, [Passage(1, "vault")])
        loop = asyncio.get_running_loop()

        async def ask(query: str) -> None:
            assert await find(index, query, BOB) == []
            assert await find(index, query, ANN, OTHER_SID) == []
            assert await find(index, query, Tenant(query), Sid(query)) == []
            assert set(await find(index, query)) <= {1, 2}

        @given(QUERIES)
        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        def try_queries(query: str) -> None:
            asyncio.run_coroutine_threadsafe(ask(query), loop).result(30)

        await asyncio.to_thread(try_queries)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("before\0after\0", "after"),
        ("\N{PARTY POPPER} tada \N{PARTY POPPER}", "tada"),
        ("会议室在三楼,密码是四五六七", "密码是什么"),
        ("東京タワーの高さは三百三十三メートル", "タワー 高さ"),
        ("Пароль от сейфа: берёза", "сейфа"),
        ("cafe\N{COMBINING ACUTE ACCENT} au lait", "café"),
        ("'); DROP TABLE session; --", "drop table"),
        ("quince " + "x" * 1_000_000, "quince"),
        ("word " * 200_000, "word"),
        ("\r\n\t  padded \x1b[0m", "padded"),
    ],
    ids=[
        "nul",
        "emoji",
        "chinese",
        "japanese",
        "cyrillic",
        "combining",
        "sql",
        "one-word-1MB",
        "words-1MB",
        "controls",
    ],
)
async def test_odd_text_is_found(index: RecallIndex, text: str, query: str) -> None:
    await index.add(SID, ANN, [Passage(1, "nothing of that kind"), Passage(2, text), Passage(3, "nor here")])
    assert (await find(index, query))[0] == 2


async def test_texts_that_say_nothing_are_passed_over(index: RecallIndex) -> None:
    await index.add(SID, ANN, [Passage(1, ""), Passage(2, " \n\0 "), Passage(3, "apple"), Passage(4, "...")])
    assert (await find(index, "apple"))[0] == 3
    assert await index.newest(SID, ANN) == 4


async def test_fifty_calls_at_once_do_not_disturb_each_other(index: RecallIndex) -> None:
    sids = [Sid(f"sid-{n}") for n in range(50)]

    async def use(n: int, sid: Sid) -> tuple[int, list[int]]:
        await index.add(sid, ANN, [Passage(k, f"word{n} item") for k in range(1, n + 2)])
        return await index.newest(sid, ANN), await find(index, f"word{n}", ANN, sid)

    found = await asyncio.gather(*(use(n, sid) for n, sid in enumerate(sids)))
    assert found == [(n + 1, list(range(n + 1, 0, -1))) for n in range(50)]


async def test_the_same_added_fifty_times_at_once_is_there_once(index: RecallIndex) -> None:
    passages = [Passage(n, "apple") for n in range(1, 6)]
    await asyncio.gather(*(index.add(SID, ANN, passages) for _ in range(50)))
    assert await find(index, "apple") == [5, 4, 3, 2, 1]


async def test_a_closed_index_is_unavailable_and_closing_again_is_no_error(index: RecallIndex) -> None:
    await index.close()
    await index.close()
    for call in (
        index.newest(SID, ANN),
        index.add(SID, ANN, SECRETS),
        index.search(SID, ANN, "vault", upto=9, limit=9),
        index.forget(SID, ANN),
    ):
        with pytest.raises(IndexUnavailable):
            await call


async def test_words_are_found_while_the_embedder_is_away(kind: str, tmp_path: Path) -> None:
    embedder = LetterEmbedder()
    async with INDEXES[kind](tmp_path, embedder) as index:
        embedder.fails = True
        with pytest.raises(IndexUnavailable):
            await index.add(SID, ANN, [Passage(1, "apple"), Passage(2, "quince")])
        assert await find(index, "quince") == [2]


async def test_what_the_embedder_missed_is_embedded_with_the_next_item(kind: str, tmp_path: Path) -> None:
    embedder = LetterEmbedder()
    async with INDEXES[kind](tmp_path, embedder) as index:
        embedder.fails = True
        with pytest.raises(IndexUnavailable):
            await index.add(SID, ANN, [Passage(1, "aaa"), Passage(2, "zzz")])
        embedder.fails = False
        await index.add(SID, ANN, [Passage(3, "mmm")])
        assert embedder.embedded == ["aaa", "zzz", "mmm"]
        assert (await find(index, "azz"))[0] == 2


async def test_other_words_are_found_by_their_meaning(kind: str, tmp_path: Path) -> None:
    async with INDEXES[kind](tmp_path, LetterEmbedder()) as index:
        await index.add(SID, ANN, [Passage(1, "aaab"), Passage(2, "yyyz")])
        assert await find(index, "ba") == [1, 2]
        assert await find(index, "zy") == [2, 1]

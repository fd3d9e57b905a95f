"""Prompts of a trace: stable bytes, places of messages, sizes."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.replay.prompt import BlockTexts, PromptWriter, message_bounds, session_of
from router.replay.trace import TraceRow

BLOCK_TOKENS = 16
BLOCK_BYTES = 64
WRITER = PromptWriter("sim", BLOCK_TOKENS)


def row(*blocks: int, tokens: int | None = None, session: str | None = None) -> TraceRow:
    length = len(blocks) * BLOCK_TOKENS if tokens is None else tokens
    return TraceRow(0, length, 5, hash_ids=blocks or None, session_id=session)


def messages(request: TraceRow, number: int = 0) -> list[dict[str, str]]:
    body = json.loads(WRITER.body(request, number))
    found = body["messages"]
    assert isinstance(found, list)
    return found


def text_of(request: TraceRow, number: int = 0) -> str:
    return "".join(message["content"] for message in messages(request, number))


def test_body_asks_for_a_stream_of_the_traces_output_length() -> None:
    body = json.loads(PromptWriter('a "model"', BLOCK_TOKENS).body(row(1, 2), 0))
    del body["messages"]
    expected = {"model": 'a "model"', "max_tokens": 5, "temperature": 0, "ignore_eos": True, "stream": True}
    assert body == expected


def test_places_are_system_then_four_blocks_for_each_message() -> None:
    found = messages(row(*range(13)))
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user"]
    assert [len(message["content"]) // BLOCK_BYTES for message in found] == [1, 4, 4, 4]


def test_chain_of_one_block_is_the_users() -> None:
    assert [message["role"] for message in messages(row(3))] == ["user"]


@given(st.integers(2, 300))
def test_roles_alternate_and_the_last_is_the_users(blocks: int) -> None:
    bounds = message_bounds(blocks)
    assert bounds[0] == 1
    assert bounds[-1] == blocks
    assert all(start < end for start, end in pairwise(bounds))
    assert len(bounds) % 2 == 0


@given(st.integers(2, 120), st.integers(1, 20))
def test_only_the_last_block_may_move_to_another_message_in_a_later_turn(blocks: int, more: int) -> None:
    def stable(bounds: list[int]) -> list[int]:
        return [bound for bound in bounds if bound < blocks - 1]

    assert stable(message_bounds(blocks)) == stable(message_bounds(blocks + more))


def test_later_turns_body_begins_with_the_earlier_ones_messages() -> None:
    early, late = WRITER.body(row(*range(13)), 0), WRITER.body(row(*range(30)), 7)
    shared = early[: early.rindex(b"]")]
    assert late.startswith(shared)


@given(st.integers(2, 60), st.integers(1, 30))
def test_texts_of_two_turns_agree_as_far_as_their_ids(blocks: int, more: int) -> None:
    early = text_of(row(*range(blocks)))
    assert text_of(row(*range(blocks + more))).startswith(early)


def test_text_is_the_same_in_every_process() -> None:
    assert BlockTexts(BLOCK_BYTES).text("", 1) == BlockTexts(BLOCK_BYTES).text("", 1)
    assert BlockTexts(BLOCK_BYTES).text("", 1)[:17] == b"niipnmlmsrgmehdl "


def test_texts_differ_between_blocks_and_between_sessions() -> None:
    texts = BlockTexts(2048)
    seen = {texts.text(scope, block) for scope in ("", "s1", "s2") for block in range(1000)}
    assert len(seen) == 3000


@pytest.mark.parametrize("block_bytes", [32, 64, 2048])
def test_texts_are_words_between_single_spaces_of_the_size_asked_for(block_bytes: int) -> None:
    texts = BlockTexts(block_bytes)
    joined = b"".join(texts.text("", block) for block in range(200))
    assert len(joined) == 200 * block_bytes
    assert joined.replace(b" ", b"").isalpha()
    assert b"  " not in joined


def test_last_block_is_cut_in_proportion_to_the_input() -> None:
    whole, cut = text_of(row(1, 2, 3)), text_of(row(1, 2, 3, tokens=2 * BLOCK_TOKENS + 4))
    assert len(cut) == 2 * BLOCK_BYTES + 16
    assert whole.startswith(cut)


def test_rows_without_ids_are_unique_and_sized_by_their_input() -> None:
    first, second = text_of(row(tokens=40), 0), text_of(row(tokens=40), 1)
    assert len(first) == len(second) == 160
    assert first[:BLOCK_BYTES] != second[:BLOCK_BYTES]


def test_session_is_the_traces_own_else_the_block_after_the_system() -> None:
    assert session_of(row(7, 8, 9, session="mine"), 0) == "mine"
    assert session_of(row(7, 8, 9), 0) == session_of(row(7, 8), 5) == "block-8"
    assert session_of(row(7), 0) == "block-7"
    assert session_of(row(tokens=9), 3) == "row-3"

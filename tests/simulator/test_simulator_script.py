"""What leaves token by token: whole characters only, stop strings never, and a prompt that was cut in one comes along."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulator.answers import BOOK_TOKENS
from router.simulator.rich import rich_book
from router.simulator.script import Script, Stops, ends_broken, leaked, write_script

SMILE = "🙂".encode()


def script_of(*tokens: bytes, held: bytes = b"", stops: Stops | None = None) -> Script:
    return write_script(range(len(tokens)), tokens, held, stops or Stops(), "length")


def texts_of(script: Script) -> list[str]:
    return [json.loads(b'"%b"' % text) for text in script.texts]


def test_a_character_leaves_with_its_last_byte() -> None:
    tokens = (b"a", SMILE[:1], SMILE[1:3], SMILE[3:] + b"b", SMILE[:2])
    assert texts_of(script_of(*tokens)) == ["a", "", "", "🙂b", ""]


def test_whole_characters_wait_for_the_broken_one_behind_them() -> None:
    assert texts_of(script_of("é".encode() + SMILE[:3], SMILE[3:])) == ["", "é🙂"]


def test_bytes_that_are_no_character_leave_replaced_once_something_whole_follows() -> None:
    assert texts_of(script_of(SMILE[:2], b"\xff", b"x")) == ["", "", "\ufffd\ufffdx"]


@given(st.text(max_size=60), st.lists(st.integers(1, 5), max_size=100))
def test_however_a_text_is_cut_it_leaves_as_it_is(text: str, sizes: list[int]) -> None:
    data, tokens = text.replace("\ufffd", "").encode(), []
    for size in [*sizes, *(len(data) * [1])]:
        tokens.append(data[:size])
        data = data[size:]
    assert "".join(texts_of(script_of(*tokens))) == text.replace("\ufffd", "")


def test_a_prompt_that_ends_inside_a_character_comes_along_without_its_special_tokens() -> None:
    prompt = b"<|im_start|>system\nSECRET<|im_end|>\nok " + SMILE[:3]
    script = script_of(SMILE[3:], b"!", held=leaked(prompt))
    assert texts_of(script) == ["system\nSECRET\nok 🙂", "!"]
    assert leaked(prompt + SMILE[3:]) == b""


@pytest.mark.parametrize(("text", "is_broken"), [(b"", 0), (b"a", 0), (SMILE, 0), (SMILE[:3], 1), (b"ab\x80", 1)])
def test_an_end_is_broken_where_a_replacement_would_stand(text: bytes, is_broken: bool) -> None:
    assert ends_broken(text) == is_broken


def test_a_stop_string_is_found_across_tokens_and_none_of_it_leaves() -> None:
    script = script_of(b"one ", b"tw", b"o thr", b"ee", stops=Stops(["two"]))
    assert texts_of(script) == ["on", "e ", ""]
    assert (script.ids, script.finish_reason, script.stop_reason) == ([0, 1, 2], "stop", "two")


def test_what_was_held_back_for_a_stop_string_leaves_at_the_end() -> None:
    assert texts_of(script_of(b"abc", b"def", b"g", stops=Stops(["xxxxx"]))) == ["", "ab", "cdefg"]


def test_a_stop_string_that_is_included_holds_nothing_back() -> None:
    script = script_of(b"one ", b"tw", b"o three", stops=Stops(["two"], are_included=True))
    assert texts_of(script) == ["one ", "tw", "o"]


def test_the_stop_string_that_ends_first_wins() -> None:
    script = script_of(b"abcdef", stops=Stops(["bcde", "cd", "zz"]))
    assert (script.stop_reason, texts_of(script)) == ("cd", ["ab"])


def test_a_stop_string_within_the_least_tokens_is_not_looked_for() -> None:
    script = script_of(b"stop", b" go ", b"stop", stops=Stops(["stop"], min_tokens=2))
    assert (len(script.ids), "".join(texts_of(script))) == (3, "stop go ")


def test_a_stop_id_is_told_and_its_text_is_not() -> None:
    script = script_of(b"a", b"b", b"c", stops=Stops(ids=[1]))
    assert (script.ids, texts_of(script), script.finish_reason, script.stop_reason) == ([0, 1], ["a", ""], "stop", 1)
    assert len(script_of(b"a", b"b", b"c", stops=Stops(ids=[1], min_tokens=3)).ids) == 3


def test_the_rich_book_is_valid_and_cuts_characters_in_every_way() -> None:
    tokens = rich_book().tokens
    assert "\ufffd" not in b"".join(tokens).decode()
    assert len(tokens) == BOOK_TOKENS
    kinds = {"inside": 0, "across": 0, "one byte of several": 0}
    for token in tokens:
        leads = [byte >= 0xC0 for byte in token]
        kinds["inside"] += all(0x80 <= byte < 0xC0 for byte in token)
        kinds["across"] += 0x80 <= token[0] < 0xC0 and leads[-1]
        kinds["one byte of several"] += len(token) == 1 and token[0] >= 0x80
    assert min(kinds.values()) > BOOK_TOKENS // 100

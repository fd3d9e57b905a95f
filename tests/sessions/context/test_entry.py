"""What an entry of a log promises: what was written is read, and what does not belong is noticed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request.request import Tenant
from router.sessions.context.entry import SCHEMA, BadEntry, Draft, Kind, NewerSchema, decode, encode_turn, first_link
from tests.sessions.context.logs import OWNER, SID, history, turn, user

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(Kind), JSON, st.integers(0, 1 << 40), st.booleans())
def test_an_entry_is_read_as_it_was_written(kind: Kind, body: object, tokens: int, ends: bool) -> None:
    data = msgspec.json.encode(body)
    (written,), link = encode_turn(
        [Draft(kind, data, tokens)], sid=SID, owner=OWNER, turn=7, at=1.5, link=None, ends=ends
    )
    entry = decode(written)
    assert (entry.kind, bytes(entry.body), entry.tokens, entry.ends, entry.link) == (kind, data, tokens, ends, link)
    assert (entry.owner, entry.turn, entry.at, entry.schema) == (OWNER, 7, 1.5, SCHEMA)


def test_only_the_last_entry_of_a_turn_ends_it() -> None:
    assert [decode(entry).ends for entry in turn(1, user("a"), user("b"), user("c"))] == [False, False, True]
    assert [decode(entry).ends for entry in turn(1, user("a"), user("b"), ends=False)] == [False, False]


@pytest.mark.parametrize("shape", ["same", "longer", "other"])
def test_an_entry_of_a_later_release_is_known_for_one(shape: str) -> None:
    fields = msgspec.json.decode(turn(1, user("a"))[0])
    later = {"same": fields[1:], "longer": [*fields[1:], "new"], "other": [{"kind": "?"}]}[shape]
    with pytest.raises(NewerSchema):
        decode(msgspec.json.encode([SCHEMA + 1, *later]))


@given(st.integers(0, len(turn(1, user("some text"))[0]) - 1))
def test_an_entry_cut_short_anywhere_is_no_entry(length: int) -> None:
    with pytest.raises(BadEntry) as bad:
        decode(turn(1, user("some text"))[0][:length])
    assert not isinstance(bad.value, NewerSchema)


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[]", b"[1]", b'["1"]', b"\xff", b'{"schema": 9}'])
def test_what_nobody_wrote_is_no_entry(data: bytes) -> None:
    with pytest.raises(BadEntry):
        decode(data)


def test_an_entry_of_another_owner_is_noticed() -> None:
    (foreign,), _ = encode_turn(
        [Draft(Kind.MESSAGE, b"{}")], sid=SID, owner=Tenant("beta"), turn=1, at=1.0, link=None, ends=True
    )
    with pytest.raises(BadEntry, match="owner"):
        history([foreign])


def test_an_entry_of_another_session_of_the_same_owner_is_noticed() -> None:
    (foreign,), _ = encode_turn(
        [Draft(Kind.MESSAGE, b"{}")], sid="t" * 32, owner=OWNER, turn=1, at=1.0, link=None, ends=True
    )
    with pytest.raises(BadEntry, match="follow"):
        history([foreign])


def test_an_entry_moved_to_another_turn_is_noticed() -> None:
    fields = msgspec.json.decode(turn(1, user("a"))[0])
    fields[3] = 2
    with pytest.raises(BadEntry, match="follow"):
        history([msgspec.json.encode(fields)])


@given(st.permutations(range(3)))
def test_entries_of_one_turn_in_another_order_are_noticed(order: list[int]) -> None:
    log = turn(1, user("a"), user("b"), user("c"), ends=False)
    shuffled = [log[at] for at in order]
    if order == [0, 1, 2]:
        assert history(shuffled).head == 3
    else:
        with pytest.raises(BadEntry):
            history(shuffled)


def test_a_changed_text_is_noticed() -> None:
    log = turn(1, user("yes"))
    with pytest.raises(BadEntry):
        history([log[0].replace(b"yes", b"noo")])


def test_a_gap_in_the_log_is_noticed() -> None:
    log = turn(1, user("a")) + turn(2, user("b")) + turn(3, user("c"))
    with pytest.raises(BadEntry, match="entry 2 is missing"):
        history(log[:1]).add(log[2:], 3)


@given(st.text(max_size=9), st.text(max_size=9), st.integers(1, 99), st.integers(1, 99))
def test_no_two_turns_begin_with_the_same_link(one: str, other: str, first: int, second: int) -> None:
    assert (first_link(one, first) == first_link(other, second)) == ((one, first) == (other, second))

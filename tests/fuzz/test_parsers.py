"""No bytes make a parser raise what it does not declare: bytes at random, and what is right with a few places changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS

ODD = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\u",
    b"\\ud800",
    b'"',
    b"\r\n",
    b"\n\n",
    b":",
    b"[" * 70,
    b"9" * 5000,
    b"1e999",
)


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with some slices left out, doubled or replaced."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        put = draw(st.one_of(st.sampled_from(ODD), st.binary(max_size=8), st.just(data[start:end] * 2)))
        data = data[:start] + put + data[end:]
    return data


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_bytes_make_a_parser_raise_what_it_does_not_declare(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(st.one_of(st.binary(max_size=200), changed(SEEDS[name]))))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_parser_takes_its_seeds(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)

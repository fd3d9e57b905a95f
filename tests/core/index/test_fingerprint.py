"""What a fingerprint promises: prefixes agree exactly as far as bytes and scope do, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.core.index.fingerprint import BLOCK_BYTES, anchor, fingerprint

NAMES = st.text(max_size=8)
ANCHOR = 0x143421B9EFE0F1F4
FIRST_BLOCK = 0xD83204EDE8D6F5B3


@given(st.binary(max_size=5 * BLOCK_BYTES), st.lists(st.integers(0, 5 * BLOCK_BYTES), max_size=8))
def test_cuts_between_segments_make_no_difference(prompt: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(prompt), *(min(cut, len(prompt)) for cut in cuts)})
    segments = [prompt[start:end] for start, end in pairwise(edges)]
    assert fingerprint(segments, model="m") == fingerprint([prompt], model="m")


@given(st.binary(max_size=4 * BLOCK_BYTES))
def test_only_whole_blocks_are_hashed(prompt: bytes) -> None:
    made = fingerprint([prompt], model="m")
    assert len(made.hashes) == len(prompt) // BLOCK_BYTES
    assert made.prompt_bytes == len(prompt)


@given(st.integers(0, 6 * BLOCK_BYTES - 1))
def test_prompts_agree_up_to_the_block_that_differs_and_never_after_it(changed: int) -> None:
    prompt = bytes(6 * BLOCK_BYTES)
    other = prompt[:changed] + b"\x01" + prompt[changed + 1 :]
    ours, theirs = (fingerprint([each], model="m").hashes for each in (prompt, other))
    shared = changed // BLOCK_BYTES
    assert ours[:shared] == theirs[:shared]
    assert all(one != two for one, two in zip(ours[shared:], theirs[shared:], strict=True))


def test_equal_blocks_at_different_depths_have_different_hashes() -> None:
    hashes = fingerprint([bytes(8 * BLOCK_BYTES)], model="m").hashes
    assert len(set(hashes)) == 8


@given(st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_scopes_that_differ_share_nothing(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    prompt = [bytes(2 * BLOCK_BYTES)]
    ours, theirs = (
        fingerprint(prompt, model=model, cache_salt=salt, tenant=tenant) for model, salt, tenant in (one, two)
    )
    assert (ours.hashes == theirs.hashes) == (one == two)


def test_a_lone_surrogate_in_a_name_is_hashed_like_any_other() -> None:
    assert fingerprint([b""], model="\ud800").hashes == []
    assert anchor([], model="\ud800") != anchor([], model="\ud801")


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_anchors_of_different_segments_differ(one: list[bytes], two: list[bytes]) -> None:
    assert (anchor(one, model="m") == anchor(two, model="m")) == (one == two)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_anchors_of_different_scopes_differ(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    ours, theirs = (anchor([b"s"], tenant=tenant, model=model) for tenant, model in (one, two))
    assert (ours == theirs) == (one == two)


def test_values_are_the_same_in_every_process() -> None:
    """Replicas agree on anchors, and an upgrade must not move every conversation."""
    assert anchor([b"system", b"hello"], model="m", tenant="t") == ANCHOR
    assert fingerprint([bytes(BLOCK_BYTES)], model="m").hashes == [FIRST_BLOCK]

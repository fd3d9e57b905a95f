"""The index against a plain model of it, and what it promises about memory, membership and hotness."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.core.index.fingerprint import BLOCK_BYTES, Fingerprint, fingerprint
from router.core.index.prefix_index import NO_MATCHES, PrefixIndex, positions_of

MAX_ENTRIES = 24
POSITIONS = st.integers(0, 70)


def chain(*hashes: int) -> Fingerprint:
    return Fingerprint(list(hashes), len(hashes) * BLOCK_BYTES)


def held(index: PrefixIndex, prompt: Fingerprint) -> dict[int, float]:
    """Position → blocks."""
    return dict(index.match(prompt, len(prompt.hashes)))


SHARED = chain(*range(1, 41))


@st.composite
def prompts(draw: st.DrawFn) -> Fingerprint:
    """Paths in a small tree: the block at each depth is named by the path that leads there, as chained hashes are."""
    path, hashes = 1, []
    for step in draw(st.lists(st.integers(0, 1), min_size=1, max_size=6)):
        path = path * 2 + step
        hashes.append(path)
    return chain(*hashes)


class IndexModel(RuleBasedStateMachine):
    """Each worker is an LRU list; a match is the run from the start that is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(MAX_ENTRIES, default_capacity_blocks=6)
        self.capacity: dict[int, int] = {}
        self.model: dict[int, OrderedDict[object, None]] = {}

    def trim(self) -> None:
        room, left = MAX_ENTRIES, len(self.capacity)
        for position, capacity in sorted(self.capacity.items(), key=lambda item: item[1]):
            limit = max(1, min(capacity, room // left))
            room, left = room - limit, left - 1
            while len(self.model[position]) > limit:
                self.model[position].popitem(last=False)

    @rule(position=POSITIONS, capacity=st.integers(1, 9) | st.none())
    def add(self, position: int, capacity: int | None) -> None:
        if position in self.capacity:
            with pytest.raises(ValueError, match="taken"):
                self.index.add(position, capacity)
            return
        self.index.add(position, capacity)
        self.capacity[position], self.model[position] = capacity or 6, OrderedDict()
        self.trim()

    @rule(position=POSITIONS)
    def remove(self, position: int) -> None:
        self.index.remove(position)
        if self.capacity.pop(position, None) is not None:
            del self.model[position]
            self.trim()

    @rule(position=POSITIONS, capacity=st.integers(1, 9))
    def resize(self, position: int, capacity: int) -> None:
        if position in self.capacity:
            self.index.resize(position, capacity)
            self.capacity[position] = capacity
            self.trim()

    @rule(position=POSITIONS)
    def clear(self, position: int) -> None:
        if position in self.capacity:
            self.index.clear(position)
            self.model[position].clear()

    @rule(position=POSITIONS, prompt=prompts(), output=st.none() | st.integers(0, 3 * BLOCK_BYTES))
    def record(self, position: int, prompt: Fingerprint, output: int | None) -> None:
        self.index.record(position, prompt, output)
        if position in self.capacity:
            blocks = self.model[position]
            for _ in range(min(-(-(output or 0) // BLOCK_BYTES), self.index.limit(position))):
                blocks[object()] = None
            for block in reversed(prompt.hashes):
                blocks.pop(block, None)
                blocks[block] = None
            self.trim()

    @rule(position=POSITIONS, prompt=prompts())
    def record_and_withdraw(self, position: int, prompt: Fingerprint) -> None:
        """Nothing else came in between: what was held before is held, but for what was evicted for it."""
        before = set(self.model.get(position, ()))
        recorded = self.index.record(position, prompt)
        if position in self.capacity:
            blocks = self.model[position]
            first = next((at for at, block in enumerate(prompt.hashes) if block not in before), len(prompt.hashes))
            for block in reversed(prompt.hashes):
                blocks.pop(block, None)
                blocks[block] = None
            self.trim()
            for block in prompt.hashes[first:]:
                blocks.pop(block, None)
        self.index.withdraw(position, prompt, recorded)

    @rule(prompt=prompts())
    def match(self, prompt: Fingerprint) -> None:
        expected = {}
        for position, blocks in self.model.items():
            depth = 0
            while depth < len(prompt.hashes) and prompt.hashes[depth] in blocks:
                depth += 1
            if depth:
                expected[position] = depth
        matches = self.index.match(prompt, len(prompt.hashes))
        assert held(self.index, prompt) == expected
        assert all(matches.tokens(position) == expected.get(position, 0.0) for position in range(71))
        depths = [tokens for _workers, tokens, _age in matches.groups]
        assert depths == sorted(set(depths), reverse=True)
        ages = [age for _workers, _tokens, age in matches.groups]
        assert ages == sorted(ages, reverse=True)
        assert all(age >= 0 for age in ages)

    @invariant()
    def sizes_agree(self) -> None:
        assert {position: self.index.blocks(position) for position in self.model} == {
            position: len(blocks) for position, blocks in self.model.items()
        }
        assert self.index.entries <= max(MAX_ENTRIES, len(self.model))
        named = {block for blocks in self.model.values() for block in blocks if isinstance(block, int)}
        assert len(self.index._holders) == len(named)


IndexModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestIndexAgainstModel = IndexModel.TestCase


def make(workers: int = 2, capacity: int = 100) -> PrefixIndex:
    index = PrefixIndex(10_000, capacity)
    for position in range(workers):
        index.add(position)
    return index


def test_nothing_is_matched_in_an_empty_index() -> None:
    assert make().match(chain(1, 2), 512.0) is NO_MATCHES
    assert make().match(chain(), 5.0) is NO_MATCHES


def test_a_match_is_in_tokens_and_never_more_than_the_prompt() -> None:
    index = make()
    prompt = Fingerprint([1, 2], 2 * BLOCK_BYTES + 512)
    index.record(0, prompt)
    assert index.match(prompt, 500.0).tokens(0) == pytest.approx(400.0)


def test_a_block_without_its_predecessors_does_not_count() -> None:
    index = make()
    index.record(0, chain(1, 2, 3))
    assert held(index, chain(9, 2, 3)) == {}


def test_tails_go_before_the_heads_of_the_same_prompt() -> None:
    index = make(1, capacity=4)
    index.record(0, chain(1, 2, 3))
    index.record(0, chain(10, 11))
    assert held(index, chain(1, 2, 3)) == {0: 2}
    assert held(index, chain(10, 11)) == {0: 2}


def test_a_reply_takes_room() -> None:
    index = make(1, capacity=4)
    index.record(0, chain(1, 2))
    index.record(0, chain(5, 6), output_bytes=BLOCK_BYTES + 1)
    assert held(index, chain(1, 2)) == {}
    assert held(index, chain(5, 6)) == {0: 2}


def test_a_refused_prompt_takes_back_what_it_added_and_nothing_that_was_held() -> None:
    index = make()
    index.record(0, SHARED)
    for number in range(12):
        longer = Fingerprint([*SHARED.hashes, 1000 + number], SHARED.prompt_bytes + 200)
        index.withdraw(0, longer, index.record(0, longer))
    assert held(index, SHARED) == {0: len(SHARED.hashes)}
    assert index.blocks(0) == len(SHARED.hashes)


@pytest.mark.parametrize("is_refused_first_recorded", [True, False])
def test_a_refused_prompt_leaves_what_another_live_request_put_there(is_refused_first_recorded: bool) -> None:
    index = make()
    one = index.record(0, SHARED)
    other = index.record(0, SHARED)
    index.withdraw(0, SHARED, one if is_refused_first_recorded else other)
    assert held(index, SHARED) == {0: len(SHARED.hashes)}


def test_a_prompt_that_ended_last_is_evicted_last() -> None:
    index = make(capacity=8)
    first, second = (chain(*range(start, start + 4)) for start in (10, 20))
    index.record(0, first)
    index.record(0, second)
    index.record(0, first, 0)
    index.record(0, chain(30, 31))
    assert held(index, first) == {0: 4}
    assert held(index, second) == {0: 2}


def test_a_position_used_again_knows_nothing_of_its_former_worker() -> None:
    index = make()
    index.record(1, chain(1, 2))
    index.remove(1)
    index.add(1)
    assert held(index, chain(1, 2)) == {}


def test_a_restarted_worker_is_forgotten_and_the_others_are_not() -> None:
    index = make()
    for position in (0, 1):
        index.record(position, chain(1, 2))
    index.clear(0)
    assert held(index, chain(1, 2)) == {1: 2}


def test_age_counts_the_requests_since_a_stretch_was_last_shared() -> None:
    index = make()
    index.record(0, chain(1, 2))
    assert index.match(chain(1, 2), 2).groups == [(1, 2.0, 0)]
    index.record(1, chain(1))
    index.record(1, chain(7))
    index.record(1, chain(7), output_bytes=10)
    assert index.match(chain(1, 2), 2).groups == [(1, 2.0, 2), (2, 1.0, 1)]


def test_many_distinct_prompts_leave_no_more_than_the_bound() -> None:
    index = PrefixIndex(500, default_capacity_blocks=1000)
    for position in range(4):
        index.add(position)
    for number in range(20_000):
        index.record(number % 4, chain(2 * number, 2 * number + 1))
        assert index.entries <= 500
    assert len(index._holders) <= 500


@pytest.mark.parametrize("positions", [[], [0], [63], [0, 1, 64, 999], list(range(130))])
def test_bits_name_their_positions(positions: list[int]) -> None:
    assert list(positions_of(sum(1 << position for position in positions))) == positions


def test_an_age_is_what_was_used_since_and_no_less_than_what_is_of_interest() -> None:
    index = PrefixIndex(10_000, 100)
    index.add(0)
    for name in range(4):
        index.record(0, fingerprint([bytes([name]) * 4096], model="m"))
    assert [index.age(0, at) for at in range(5)] == [16, 12, 8, 4, 0]
    assert [index.age(0, at, 10) for at in range(5)] == [16, 12, 10, 10, 10]
    assert index.age(7, 0) == 0, "no worker is there"

"""What can be hit, who is evicted first, and that blocks are never lost."""

from hypothesis import given
from hypothesis import strategies as st

from router.simulator.prefix_cache import Holding, PrefixCache


def fill(cache: PrefixCache, hashes: list[int], blocks: int | None = None) -> Holding:
    """Take blocks for a prompt and compute them all."""
    holding = cache.open(hashes, prompt_blocks=blocks or len(hashes), growth_blocks=0, max_cached=len(hashes))
    assert holding is not None
    cache.commit(holding, hashes[holding.cached :])
    return holding


def test_a_prompt_is_hit_up_to_its_first_unknown_block() -> None:
    cache = PrefixCache(10)
    cache.close(fill(cache, [1, 2, 3]))
    assert cache.match([1, 2, 3, 4]) == 3
    assert cache.match([1, 9, 3]) == 1
    assert cache.match([2, 3]) == 2
    assert cache.match([9]) == 0


def test_the_tail_of_a_prompt_is_evicted_before_its_head() -> None:
    cache = PrefixCache(5)
    cache.close(fill(cache, [1, 2, 3, 4]))
    cache.close(fill(cache, [11, 12, 13]))
    assert cache.match([1, 2, 3, 4]) == 2
    assert cache.match([11, 12, 13]) == 3


def test_the_least_recently_used_prompt_goes_first() -> None:
    cache = PrefixCache(4)
    cache.close(fill(cache, [1, 2]))
    cache.close(fill(cache, [11, 12]))
    cache.close(fill(cache, [1, 2]))
    cache.close(fill(cache, [21, 22]))
    assert [cache.match([head, head + 1]) for head in (1, 11, 21)] == [2, 0, 2]


def test_looking_does_not_make_young() -> None:
    cache = PrefixCache(4)
    cache.close(fill(cache, [1, 2]))
    cache.close(fill(cache, [11, 12]))
    cache.match([1, 2])
    cache.close(fill(cache, [21, 22]))
    assert cache.match([1, 2]) == 0


def test_held_blocks_are_never_evicted() -> None:
    cache = PrefixCache(4)
    held = fill(cache, [1, 2, 3])
    assert cache.open([11, 12], prompt_blocks=2, growth_blocks=0, max_cached=2) is None
    assert cache.match([1, 2, 3]) == 3
    cache.close(held)
    assert cache.open([11, 12], prompt_blocks=2, growth_blocks=0, max_cached=2) is not None


def test_a_hit_on_idle_blocks_takes_them_out_of_what_can_be_evicted() -> None:
    cache = PrefixCache(4)
    cache.close(fill(cache, [1, 2, 3, 4]))
    assert cache.open([1, 2, 3, 4, 5], prompt_blocks=5, growth_blocks=0, max_cached=5) is None
    assert cache.match([1, 2, 3, 4]) == 4


def test_promised_blocks_are_kept_free() -> None:
    cache = PrefixCache(4)
    holding = cache.open([1], prompt_blocks=1, growth_blocks=2, max_cached=0)
    assert holding is not None
    assert cache.held_blocks == 1
    assert cache.open([9, 8], prompt_blocks=2, growth_blocks=0, max_cached=0) is None
    cache.grow(holding)
    cache.grow(holding)
    assert cache.held_blocks == 3
    cache.close(holding)
    assert cache.held_blocks == 0


def test_two_that_compute_the_same_block_store_it_once() -> None:
    cache = PrefixCache(4)
    one = cache.open([1], prompt_blocks=1, growth_blocks=0, max_cached=1)
    two = cache.open([1], prompt_blocks=1, growth_blocks=0, max_cached=1)
    assert one is not None
    assert two is not None
    cache.commit(one, [1])
    cache.commit(two, [1])
    assert cache.held_blocks == 2
    cache.close(two)
    cache.close(one)
    assert (cache.held_blocks, cache.cached_blocks) == (0, 1)


def test_reset_forgets_what_nobody_holds() -> None:
    cache = PrefixCache(4)
    held = fill(cache, [1])
    cache.close(fill(cache, [2]))
    cache.reset()
    assert (cache.match([1]), cache.match([2])) == (1, 0)
    cache.close(held)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(0, 3), st.booleans()), max_size=60))
def test_blocks_are_conserved(actions: list[tuple[int, int, int, bool]]) -> None:
    cache, open_holdings = PrefixCache(12), []
    for name, blocks, growth, closes in actions:
        hashes = [name * 100 + at for at in range(blocks)]
        holding = cache.open(hashes, prompt_blocks=blocks, growth_blocks=growth, max_cached=blocks - 1)
        if holding is not None:
            cache.commit(holding, hashes[holding.cached :])
            if growth:
                cache.grow(holding)
            open_holdings.append(holding)
        if closes and open_holdings:
            cache.close(open_holdings.pop(0))
        assert cache.held_blocks <= 12
        assert cache.held_blocks + cache.cached_blocks - len(cache._references) <= 12
    for holding in open_holdings:
        cache.close(holding)
    assert cache.held_blocks == 0
    assert cache._reserved == 0

"""Which worker likely holds which prefix: an estimate from the prompts that were sent there, corrected by the workers' reports.

Decides how far a prompt is cached on each worker. Must never grow without bound, and never count a block whose
predecessors are not held: a worker can only reuse a prefix from its start.

A block's hash maps to a Python integer with one bit for each worker that holds the block, so a prompt's match on
every worker is a run of ANDs. Each worker also has an LRU of its blocks, as long as its real cache is large; a
prompt's deepest block is touched first, so that tails go before the heads that they depend on.

Memory: an entry is one block on one worker, and there are never more than ``max_entries``. It takes up to 360 bytes where
no other worker holds the block, and less where several do (``bench/decision_cost.py`` measures it).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice, takewhile

import msgspec

from router.core.index.fingerprint import BLOCK_BYTES, Fingerprint

SPARSE = 16
"""Taking out one set bit costs as much as passing over this many bits."""

_BIT_OF_DIGIT = bytes.maketrans(b"01", b"\x00\x01")


def positions_of(workers: int) -> Iterable[int]:
    """The positions of set bits, ascending. A few are taken one by one, many in one pass over all, which is in C."""
    if workers.bit_count() * SPARSE > workers.bit_length():
        digits = bin(workers)[:1:-1].encode()
        return compress(range(len(digits)), digits.translate(_BIT_OF_DIGIT))
    positions = []
    while workers:
        lowest = workers & -workers
        positions.append(lowest.bit_length() - 1)
        workers ^= lowest
    return positions


class Matches(msgspec.Struct, frozen=True):
    """The tokens of one prompt that each worker holds. No worker is in two groups."""

    groups: Sequence[tuple[int, float, int]] = ()
    """Deepest first: a bit set of positions, the tokens cached on each of them (> 0), and how many requests ago the last
    request shared as much of the prompt (0: the request before this one)."""
    clock: int = 0
    """The index's count of requests when it was asked."""

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Position and its cached tokens, deepest first."""
        for workers, tokens, _age in self.groups:
            for position in positions_of(workers):
                yield position, tokens

    @property
    def most(self) -> float:
        """Tokens cached on the worker that holds most; 0.0 if none holds any."""
        return self.groups[0][1] if self.groups else 0.0

    def tokens(self, position: int) -> float:
        """Tokens cached on one worker; 0.0 if none are."""
        return self._held_by(position)[0]

    def last_used(self, position: int) -> int:
        """When one worker's part of the prompt was last used, on the index's clock; -1 if it holds none."""
        return self.clock - self._held_by(position)[1]

    def _held_by(self, position: int) -> tuple[float, int]:
        """One worker's tokens and age. If it holds none: 0.0, and an age from before the clock began."""
        for workers, tokens, age in self.groups:
            if workers >> position & 1:
                return tokens, age
        return 0.0, self.clock + 1


NO_MATCHES = Matches()
Recorded = tuple[int | None, int]
"""Result of ``record``: the shallowest new block (None: all were held), and the index's clock."""
MAX_FORGOTTEN = 2000
"""Most entries that ``forget_older`` takes out at once: half a millisecond."""


class _Held:
    """One worker's blocks, oldest first. Negative keys are blocks of replies: they take room and never match."""

    __slots__ = ("bit", "blocks", "capacity", "limit")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.limit = capacity
        self.blocks: OrderedDict[int, int] = OrderedDict()


class PrefixIndex:
    """Bounded per worker by ``capacity_blocks`` and in total by ``max_entries``, both in blocks of ``BLOCK_BYTES``.

    If the workers' caches together exceed ``max_entries``, the largest are cut to one common level. Positions are the fleet's.
    Not thread-safe; every call is synchronous.
    """

    def __init__(self, max_entries: int, default_capacity_blocks: int) -> None:
        self._max_entries = max_entries
        self._default_capacity = default_capacity_blocks
        self._holders: dict[int, int] = {}
        self._held: dict[int, _Held] = {}
        self._replies = 0
        self._clock = 0

    def __repr__(self) -> str:
        return f"PrefixIndex({len(self._held)} workers, {self.entries} of {self._max_entries} entries)"

    def add(self, position: int, capacity_blocks: int | None = None) -> None:
        """A worker joins at a free position; without a capacity it gets the default. Raises ValueError if the position is
        taken."""
        if position in self._held:
            raise ValueError(f"position {position} is taken: remove its worker first")
        self._held[position] = _Held(1 << position, capacity_blocks or self._default_capacity)
        self._share_out()

    def remove(self, position: int) -> None:
        """A worker leaves, and its position is free. Without a worker there, nothing happens."""
        if position in self._held:
            self.clear(position)
            del self._held[position]
            self._share_out()

    def resize(self, position: int, capacity_blocks: int) -> None:
        """The worker's cache has this size, in blocks; blocks that no longer fit are forgotten, oldest first."""
        held = self._held[position]
        if held.capacity != capacity_blocks:
            held.capacity = max(1, capacity_blocks)
            self._share_out()

    def clear(self, position: int) -> None:
        """Forget all blocks of the worker, which has restarted. O(its blocks)."""
        held = self._held[position]
        self._evict(held, len(held.blocks))

    def match(self, fingerprint: Fingerprint, prompt_tokens: float) -> Matches:
        """How far each worker holds the prompt. O(blocks up to the first that no worker holds), for any number of workers.

        ``prompt_tokens`` converts blocks into tokens. All blocks count as equally many tokens, so no match exceeds the prompt.
        """
        holders = self._holders
        groups: list[tuple[int, int]] = []
        workers = -1
        depth = 0
        for block in fingerprint.hashes:
            still = workers & holders.get(block, 0)
            if still != workers:
                if depth:
                    groups.append((workers ^ still, depth))
                if not still:
                    workers = 0
                    break
                workers = still
            depth += 1
        if depth and workers:
            groups.append((workers, depth))
        if not groups:
            return NO_MATCHES
        tokens_per_block = prompt_tokens * BLOCK_BYTES / fingerprint.prompt_bytes
        groups.reverse()
        held, clock, hashes = self._held, self._clock, fingerprint.hashes
        latest = 0
        found = []
        for workers, depth in groups:
            # One holder stands for the group: if their times differ, they also share the stretch at other times.
            last = held[workers.bit_length() - 1].blocks[hashes[depth - 1]]
            latest = max(last, latest)
            found.append((workers, depth * tokens_per_block, clock - latest))
        return Matches(found, clock)

    def record(self, position: int, fingerprint: Fingerprint, output_bytes: int | None = None) -> Recorded:
        """The prompt went to this worker, which holds it from now on, followed by ``output_bytes`` of reply.

        Call it without output when a request is routed, and with output when it ends: a worker's own LRU counts from the end
        (vLLM frees a request's blocks then, which makes them the newest). Only the first call counts as a request in
        ``Matches``. Without a worker at the position, nothing happens.
        """
        held, first_new = self._held.get(position), None
        if held is None:
            return first_new, self._clock
        if output_bytes is None:
            self._clock += 1
        blocks, bit, holders, clock = held.blocks, held.bit, self._holders, self._clock
        for _ in range(min(-(-(output_bytes or 0) // BLOCK_BYTES), held.limit)):
            self._replies -= 1
            blocks[self._replies] = clock
        for block in reversed(fingerprint.hashes):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                holders[block] = holders.get(block, 0) | bit
                first_new = block
            blocks[block] = clock
        if len(blocks) > held.limit:
            self._evict(held, len(blocks) - held.limit)
        return first_new, clock

    def withdraw(self, position: int, fingerprint: Fingerprint, recorded: Recorded) -> None:
        """The prompt was not computed there after all: forget the blocks that ``record`` added, except those that another
        request has been recorded with since. Blocks that were held before stay."""
        held, (first_new, clock) = self._held.get(position), recorded
        if held is None or first_new is None:
            return
        for block in fingerprint.hashes[fingerprint.hashes.index(first_new) :]:
            if held.blocks.get(block) == clock:
                del held.blocks[block]
                self._forget(held.bit, block)

    def forget_older(self, position: int, than: int) -> None:
        """The worker evicted a block last used at ``than``, so it evicted all blocks that were not used since.

        At most MAX_FORGOTTEN entries go at once; a worker whose cache is smaller than believed will show it again.
        """
        held = self._held.get(position)
        if held is None:
            return
        self._evict(held, len(held.blocks) - self.age(position, than))

    def age(self, position: int, at: int, floor: int = 0) -> int:
        """Blocks that were used on the worker after ``at``, on the index's clock; no fewer than ``floor``. O(older blocks): at
        most MAX_FORGOTTEN are passed over, and if there are more, the result is too high."""
        held = self._held.get(position)
        if held is None:
            return 0
        most = max(0, min(len(held.blocks) - floor, MAX_FORGOTTEN))
        older = sum(1 for _ in takewhile(at.__ge__, islice(held.blocks.values(), most)))
        return max(len(held.blocks) - older, floor)

    def blocks(self, position: int) -> int:
        """Entries of one worker, those of replies included; 0 without a worker."""
        held = self._held.get(position)
        return len(held.blocks) if held else 0

    def limit(self, position: int) -> int:
        """Most entries that one worker may have; 0 without a worker."""
        held = self._held.get(position)
        return held.limit if held else 0

    @property
    def entries(self) -> int:
        """Entries over all workers: at most ``max_entries``, or one for each worker if there are more workers."""
        return sum(len(held.blocks) for held in self._held.values())

    def _share_out(self) -> None:
        """Cut the largest caches to the highest common level at which all fit into ``max_entries``."""
        room, left = self._max_entries, len(self._held)
        for held in sorted(self._held.values(), key=lambda held: held.capacity):
            held.limit = max(1, min(held.capacity, room // left))
            room -= held.limit
            left -= 1
            if len(held.blocks) > held.limit:
                self._evict(held, len(held.blocks) - held.limit)

    def _evict(self, held: _Held, count: int) -> None:
        blocks, bit = held.blocks, held.bit
        for _ in range(count):
            block, _nothing = blocks.popitem(last=False)
            if block >= 0:
                self._forget(bit, block)

    def _forget(self, bit: int, block: int) -> None:
        rest = self._holders[block] ^ bit
        if rest:
            self._holders[block] = rest
        else:
            del self._holders[block]

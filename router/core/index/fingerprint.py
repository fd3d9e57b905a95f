"""A prompt as a chain of block hashes, and the key of its stable part.

Decides which prompts share a prefix, and how far. Never sees tokens. Prompts of two models, salts or tenants share nothing:
they start from different seeds. The hashes are fast, not cryptographic: a deliberate collision can mislead a routing decision,
but reads no cache, since the worker compares its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

BLOCK_BYTES = 1024
"""About 256 tokens of English text or code."""


class Fingerprint(msgspec.Struct, frozen=True):
    """``hashes[i]`` stands for the first ``(i + 1) * BLOCK_BYTES`` bytes of the prompt; a part block has none."""

    hashes: Sequence[int]
    """64-bit values, from the prompt's start on."""
    prompt_bytes: int


class Chain:
    """A fingerprint that grows with its prompt: an extension costs only its own bytes."""

    __slots__ = ("_hashes", "_link", "_rest", "prompt_bytes")

    def __init__(self, *, model: str, cache_salt: str = "", tenant: str = "") -> None:
        self._link = _seed(model, "", cache_salt, tenant)
        self._hashes: list[int] = []
        self._rest = b""
        self.prompt_bytes = 0

    def extend(self, segments: Iterable[bytes]) -> None:
        added = b"".join((self._rest, *segments))
        self.prompt_bytes += len(added) - len(self._rest)
        view = memoryview(added)
        end = len(added) - len(added) % BLOCK_BYTES
        for start in range(0, end, BLOCK_BYTES):
            self._link = xxh3_64_intdigest(view[start : start + BLOCK_BYTES], self._link)
            self._hashes.append(self._link)
        self._rest = added[end:]

    def copy(self) -> Chain:
        """A copy that may grow while this one stays."""
        chain = Chain.__new__(Chain)
        chain._link, chain._rest, chain.prompt_bytes = self._link, self._rest, self.prompt_bytes  # noqa: SLF001
        chain._hashes = self._hashes[:]  # noqa: SLF001
        return chain

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(tuple(self._hashes), self.prompt_bytes)


def fingerprint(segments: Iterable[bytes], *, model: str, cache_salt: str = "", tenant: str = "") -> Fingerprint:
    """Hashes of the prompt's canonical bytes; the cuts between segments make no difference. O(bytes).

    Two prompts share ``n`` hashes exactly as far as their first ``n`` whole blocks, model, salt and tenant agree.
    """
    prompt = b"".join(segments)
    view = memoryview(prompt)
    link = _seed(model, "", cache_salt, tenant)
    hashes: list[int] = []
    for start in range(0, len(prompt) - BLOCK_BYTES + 1, BLOCK_BYTES):
        link = xxh3_64_intdigest(view[start : start + BLOCK_BYTES], link)
        hashes.append(link)
    return Fingerprint(hashes, len(prompt))


def anchor(segments: Iterable[bytes], *, model: str, tenant: str = "") -> int:
    """64-bit ring key of a prompt's stable part: tools, system prompt and first user turn, one segment an item.

    Here the cuts count: "ab", "c" is another conversation than "a", "bc".
    """
    digest = xxh3_64(seed=_seed(model, "", tenant))
    for segment in segments:
        digest.update(b"%d:" % len(segment))
        digest.update(segment)
    return digest.intdigest()


@lru_cache(maxsize=1024)
def _seed(*names: str) -> int:
    """The names with their lengths before them, so that no two lists of names give the same bytes. The empty one keeps the
    hashes as they always were: replicas of two versions must agree."""
    return xxh3_64_intdigest("".join([f"{len(name)}:{name}" for name in names]).encode("utf-8", "surrogatepass"))

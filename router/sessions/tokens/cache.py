"""A cache of counts: system prompts and tools come again with every session."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

DIGEST_BYTES = 16


class CountCache:
    """By model and text. The least recently used goes when there are more than ``max_size``. O(1)."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def key(self, model: str, text: bytes) -> bytes:
        """A cryptographic digest, so that no client can forge another's count."""
        name = blake2b(model.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
        return blake2b(text, digest_size=DIGEST_BYTES, key=name).digest()

    def get(self, key: bytes) -> int | None:
        tokens = self._counts.get(key)
        if tokens is not None:
            self._counts.move_to_end(key)
        return tokens

    def put(self, key: bytes, tokens: int) -> None:
        self._counts[key] = tokens
        self._counts.move_to_end(key)
        if len(self._counts) > self.max_size:
            self._counts.popitem(last=False)

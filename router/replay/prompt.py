"""A trace row → the bytes of a chat request. Equal block ids give equal text, so prompts share the trace's prefixes.

A text is a pure function of its block's id, and of the session if the trace has one: no file, no clock, no process
state. Bodies are joined from cached bytes and never encoded, since the texts contain nothing that JSON escapes.

Must never let a later turn change an earlier one: messages have fixed places in the chain, and only the last message of
a request may be shorter than its place.
"""

import re
from functools import lru_cache
from hashlib import shake_128
from itertools import pairwise
from json import dumps

import xxhash

from router.replay.trace import TraceRow

BYTES_PER_TOKEN = 4
MIN_BLOCK_TOKENS = 8
MESSAGE_BLOCKS = 4
_CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 250  # memory of a cache entry besides its text
_POOL_BYTES = 1 << 18

_SPACES = 57  # of 256 byte values, which makes words of 4.5 letters in the mean
_LETTERS = bytes(ord("a") + value % 26 if value >= _SPACES else ord(" ") for value in range(256))
_NIBBLE_LETTERS = bytes.maketrans(b"0123456789abcdef", b"aeioutnshrldcmpg")


class BlockTexts:
    """Texts of `block_bytes` each: a word that no other block has, then a part of a fixed pool of random words."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        pool_bytes = _POOL_BYTES + 2 * block_bytes
        self._pool = b" ".join(shake_128(b"replay").digest(pool_bytes).translate(_LETTERS).split())
        self._word_starts = [space.end() for space in re.finditer(b" ", self._pool[: -block_bytes - 1])]
        self.text = lru_cache(_CACHE_BYTES // (block_bytes + _ENTRY_BYTES))(self._make)

    def _make(self, scope: str, block: int) -> bytes:
        """The text of a block. It ends with a space, so that texts can be joined. About 1 µs."""
        digest = xxhash.xxh3_64_intdigest(f"{scope}/{block}".encode())
        start = self._word_starts[digest % len(self._word_starts)]
        word = (b"%016x" % digest).translate(_NIBBLE_LETTERS)
        text = word + b" " + self._pool[start : start + self._block_bytes - len(word) - 2]
        return (text[:-1] + b"x " if text.endswith(b" ") else text + b" ")[: self._block_bytes]


def message_bounds(blocks: int) -> list[int]:
    """The bounds of the messages after the system message, in a chain of at least two blocks.

    The messages alternate, and the first and the last are the user's. If the chain ends within an assistant's place, its
    last block goes to a user's message: a new one, or the one before if the assistant has this block only. So a later
    turn can change at most the last block.
    """
    bounds = [*range(1, blocks, MESSAGE_BLOCKS), blocks]
    if len(bounds) % 2 == 1:  # an even number of messages, so the last is the assistant's
        if bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        else:
            bounds.insert(-1, blocks - 1)
    return bounds


class PromptWriter:
    """Request bodies for one model and block size. The cache of texts bounds the memory."""

    def __init__(self, model: str, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._texts = BlockTexts(block_tokens * BYTES_PER_TOKEN)
        self._head = b'{"model":%s,"messages":[' % dumps(model).encode()
        self._tail = b'],"max_tokens":%d,"temperature":0,"ignore_eos":true,"stream":true}'

    def body(self, row: TraceRow, number: int) -> bytes:
        """The body of a row. number: the row's place in the trace, which makes a prompt without ids unique."""
        messages = self._messages(self._pieces(row, number))
        return b"".join([self._head, *messages, self._tail % row.output_length])

    def _pieces(self, row: TraceRow, number: int) -> list[bytes]:
        text = self._texts.text
        if row.hash_ids:
            scope = "" if row.session_id is None else str(row.session_id)
            pieces = [text(scope, block) for block in row.hash_ids]
        else:
            scope = f"row {number}"
            pieces = [text(scope, block) for block in range(-(-row.input_length // self._block_tokens))]
        last_tokens = row.input_length - (len(pieces) - 1) * self._block_tokens
        if last_tokens < self._block_tokens:
            pieces[-1] = pieces[-1][: max(1, last_tokens) * BYTES_PER_TOKEN]
        return pieces

    @staticmethod
    def _messages(pieces: list[bytes]) -> list[bytes]:
        if len(pieces) == 1:
            return [b'{"role":"user","content":"', pieces[0], b'"}']
        parts = [b'{"role":"system","content":"', pieces[0], b'"}']
        is_user = True
        for start, end in pairwise(message_bounds(len(pieces))):
            parts.append(b',{"role":"user","content":"' if is_user else b',{"role":"assistant","content":"')
            parts += pieces[start:end]
            parts.append(b'"}')
            is_user = not is_user
        return parts


def session_of(row: TraceRow, number: int) -> str:
    """The value of X-Session-ID: the trace's session, else a name by the block after the system message."""
    if row.session_id is not None:
        return str(row.session_id)
    if not row.hash_ids:
        return f"row-{number}"
    return f"block-{row.hash_ids[min(1, len(row.hash_ids) - 1)]}"

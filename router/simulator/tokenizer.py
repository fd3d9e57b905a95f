"""A tokeniser without a vocabulary file: a fixed rule says which bytes begin a token. Equal prefixes have equal tokens.

A text is cut into pieces of `PIECE_BYTES`. Token t of a piece begins at the piece's t-th *starting byte* or at byte
`16 * t`, whichever is earlier. The starting bytes are chosen so that prose and random words have about 3.95 bytes a
token, digits 1, code 3, CJK 2. Both places depend only on earlier bytes, so a longer text never changes an earlier
token. Must never scan a request byte by byte in Python: one C call maps a text to ones and zeroes, and another counts a
piece, since the low half of Adler-32 is one more than the sum of the bytes (RFC 1950).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import adler32

import xxhash

PIECE_BYTES = 256
MAX_TOKEN_BYTES = 16
MAX_VOCABULARY = 2_000_000
MAX_PIECES = 100_000

# Eight letters (27 % of English prose, 8/26 of random letters), half of the capitals, digits, punctuation, the lead
# bytes of UTF-8 and a quarter of its continuation bytes.
_STARTS = frozenset(b"tdcmpbfw" + b"ACEGIKMOQSUWY" + b"0123456789" + b"\n\"',.:;=([{<") | frozenset(
    byte for byte in range(0x80, 0x100) if byte >= 0xC0 or byte % 4 == 0
)
_MARKS = bytes(byte in _STARTS for byte in range(256))
_NIBBLES = b"aeiouhjkglnrvqyz"  # sixteen bytes that begin no token


def _count(marks: bytes) -> int:
    """Tokens of one piece, given as a 1 for each starting byte and a 0 for each other byte."""
    return max((adler32(marks) & 0xFFFF) - 1, -(-len(marks) // MAX_TOKEN_BYTES))


def _offset_of(piece: bytes, token: int) -> int:
    """The place in a piece of marks where a token begins: one byte before the shortest head that contains the token."""
    low, high = 1, min(len(piece), MAX_TOKEN_BYTES * token + 1)
    while low < high:
        middle = (low + high) // 2
        if _count(piece[:middle]) > token:
            high = middle
        else:
            low = middle + 1
    return low - 1 if token else 0


def count_tokens(text: bytes) -> int:
    """How many tokens `text` has. Linear, about 2 ns a byte."""
    marks = text.translate(_MARKS)
    return sum(_count(marks[start : start + PIECE_BYTES]) for start in range(0, len(marks), PIECE_BYTES))


def cut_blocks(text: bytes, block_tokens: int, *, past: int = 0) -> tuple[int, list[int]]:
    """The number of tokens, and the byte offset at which each full block ends, in order.

    past: tokens before the text, which the number includes. The text must begin at the border of a piece.
    """
    total, ends, due = past, [], (past // block_tokens + 1) * block_tokens
    marks, least = text.translate(_MARKS), PIECE_BYTES // MAX_TOKEN_BYTES
    for start in range(0, len(marks), PIECE_BYTES):
        piece = marks[start : start + PIECE_BYTES]
        tokens = (adler32(piece) & 0xFFFF) - 1
        if tokens < least:
            tokens = _count(piece)
        while total + tokens > due:
            ends.append(start + _offset_of(piece, due - total))
            due += block_tokens
        total += tokens
    if total == due:
        ends.append(len(text))
    return total, ends


def cut_more_blocks(text: bytes, ends: Sequence[int], more: bytes, block_tokens: int) -> tuple[bytes, list[int]]:
    """Continue the blocks of `text`, which end at `ends`, with the text `more`.

    Returns the bytes after the last full block of `text`, `more` included, and the offsets in them at which the further
    blocks end.
    """
    begin = ends[-1] if ends else 0
    aligned = begin - begin % PIECE_BYTES
    tail = text[aligned:] + more
    done = len(ends) * block_tokens
    skipped = begin - aligned
    past = done - count_tokens(tail[:skipped])
    further = cut_blocks(tail, block_tokens, past=past)[1]
    return tail[skipped:], [end - skipped for end in further if end > skipped]


def hash_blocks(text: bytes, ends: Sequence[int], root: int) -> list[int]:
    """Chained hashes of the blocks that end at `ends`: the xxh3 of a block's bytes, seeded with the hash before."""
    view, digest, parent, start = memoryview(text), xxhash.xxh3_64_intdigest, root, 0
    hashes = []
    for end in ends:
        parent = digest(view[start:end], seed=parent)
        hashes.append(parent)
        start = end
    return hashes


def root_hash(model: str, salt: str) -> int:
    """The seed of a chain's first hash. Prompts of different adapters or salts share no block."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{salt}".encode())


def split_tokens(text: bytes) -> list[bytes]:
    """The tokens of a text. `count_tokens` gives their number. About 0.3 µs a token."""
    tokens: list[bytes] = []
    for start in range(0, len(text), PIECE_BYTES):
        piece = text[start : start + PIECE_BYTES]
        starting = [at for at, byte in enumerate(piece) if byte in _STARTS]
        starting += [PIECE_BYTES] * (MAX_TOKEN_BYTES - len(starting))
        fixed = range(0, PIECE_BYTES * MAX_TOKEN_BYTES, MAX_TOKEN_BYTES)
        begins = [min(pair) for pair in zip(starting, fixed, strict=False)]
        begins = [begin for begin in begins if begin < len(piece)]
        tokens += [piece[begin:end] for begin, end in zip(begins, [*begins[1:], len(piece)], strict=True)]
    return tokens


class _Ids(dict[bytes, int]):
    """Token → id, created at the first look-up. `texts`: id → token. `unsaved`: new tokens that are not yet in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[int, bytes] = {}
        self.unsaved: list[bytes] = []

    def __missing__(self, token: bytes) -> int:
        if len(self) >= MAX_VOCABULARY:
            self.clear()
            self.texts.clear()
        number = xxhash.xxh32_intdigest(token) & 0x3FFF_FFFF
        while self.texts.get(number, token) != token:
            number = (number + 1) & 0x3FFF_FFFF
        self[token] = number
        self.texts[number] = token
        self.unsaved.append(token)
        return number


class Vocabulary:
    """Tokens ↔ ids. The workers of a fleet share one, so an id means the same to all of them.

    An id is a hash of the token's bytes, so all processes give a token the same id. Each process adds its tokens to
    `file` and looks up unknown ids there. An id that stays unknown decodes to a placeholder of one token. It starts
    again empty after `MAX_VOCABULARY` tokens. own: ids and tokens that it never forgets and that `encode` does not use.
    """

    def __init__(self, own: Mapping[int, bytes] | None = None, file: str = "") -> None:
        self._ids = _Ids()
        self._pieces: dict[bytes, list[int]] = {}
        self._own = own or {}
        self._file = Path(file) if file else None
        self._read_to = 0

    def encode(self, text: bytes) -> list[int]:
        pieces, ids = self._pieces, []
        for start in range(0, len(text), PIECE_BYTES):
            piece = text[start : start + PIECE_BYTES]
            cached = pieces.get(piece)
            if cached is None:
                if len(pieces) >= MAX_PIECES:
                    pieces.clear()
                cached = pieces[piece] = self.ids_of(split_tokens(piece))
            ids += cached
        return ids

    def ids_of(self, tokens: Sequence[bytes]) -> list[int]:
        ids = list(map(self._ids.__getitem__, tokens))
        if self._ids.unsaved:
            self._save()
        return ids

    def decode(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens_of(ids))

    def tokens_of(self, ids: Sequence[int]) -> list[bytes]:
        texts, own = self._ids.texts, self._own
        if self._file is not None and not all(number in texts or number in own for number in ids):
            self._load()
        return [texts.get(number) or own.get(number) or _placeholder(number) for number in ids]

    def _save(self) -> None:
        """Write new tokens before their ids leave this process, so that every reader of the ids finds them."""
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(b"".join(b"%b\n" % token.hex().encode() for token in self._ids.unsaved))
        self._ids.unsaved.clear()

    def _load(self) -> None:
        if self._file is None or not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read_to)
            whole, _, _rest = file.read().rpartition(b"\n")
        self._read_to += len(whole)
        for line in whole.split():
            self._ids[bytes.fromhex(line.decode())]
        self._ids.unsaved.clear()


def _placeholder(number: int) -> bytes:
    return b"t" + bytes(_NIBBLES[number >> shift & 15] for shift in range(0, 32, 4))

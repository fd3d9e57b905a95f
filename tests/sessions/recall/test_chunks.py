from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.sessions.recall.chunks import MAX_PIECE_CHARS, MAX_PIECES, OVERLAP_CHARS, pieces

LONG_WORD = "".join(map(chr, range(0x400, 0x400 + 700)))
SPACES = st.sampled_from(["", " ", ". ", "\n", "\n\n", "! "])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """In which no place is like another."""
    spaces = draw(st.lists(SPACES, max_size=300))
    long = draw(st.sampled_from(["", LONG_WORD]))
    return long + "".join(f"{number}{space}" for number, space in enumerate(spaces, 1000))


@given(texts())
def test_pieces_are_short_and_not_empty(text: str) -> None:
    found = pieces(text)
    assert len(found) <= MAX_PIECES
    assert all(0 < len(piece) <= MAX_PIECE_CHARS and piece.strip() == piece for piece in found)


@given(texts())
def test_the_pieces_together_are_the_text(text: str) -> None:
    at, last = 0, 0
    for piece in pieces(text):
        start = text.find(piece, last)
        assert start >= 0
        assert not text[at:start].strip()
        last, at = start, max(at, start + len(piece))
    if len(pieces(text)) < MAX_PIECES:
        assert not text[at:].strip()


def test_a_short_text_is_one_piece() -> None:
    assert pieces("  one thing. another thing. \n") == ["one thing. another thing."]


def test_a_sentence_on_a_border_is_whole_in_a_piece() -> None:
    sentences = [f"This is the sentence with the number {n}." for n in range(100)]
    found = pieces(" ".join(sentences))
    assert all(any(sentence in piece for piece in found) for sentence in sentences)


def test_a_paragraph_is_not_cut_where_the_piece_may_end_before_it() -> None:
    first, second = "word " * 40, "other " * 30
    assert pieces(first + "\n\n" + second)[0] == first.strip()


def test_what_has_no_place_to_cut_is_cut_all_the_same() -> None:
    assert [len(piece) for piece in pieces("x" * 700)] == [300, 300, 100]
    assert OVERLAP_CHARS < MAX_PIECE_CHARS // 2


def test_a_text_of_white_space_has_no_pieces() -> None:
    assert pieces(" \n\t " * 1000) == []

"""Counts, blocks and ids agree with one another, and a prefix keeps its tokens whatever follows."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulator.answers import BOOK_TOKENS, Book
from router.simulator.tokenizer import (
    Vocabulary,
    count_tokens,
    cut_blocks,
    cut_more_blocks,
    hash_blocks,
    root_hash,
    split_tokens,
)

texts = st.one_of(
    st.binary(max_size=3_000),
    st.text(max_size=1_500).map(str.encode),
    st.lists(st.sampled_from(["tide ", "over ", "a" * 40, "\n", "{}", "你好"]), max_size=300)
    .map("".join)
    .map(str.encode),
)
BOOK = Book()


def random_words(size: int, seed: int) -> bytes:
    random, words, total = Random(seed), [], 0
    while total < size:
        words.append("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 7))))
        total += len(words[-1]) + 1
    return " ".join(words).encode()[:size]


@given(texts)
def test_counting_splitting_and_cutting_agree(text: bytes) -> None:
    tokens = split_tokens(text)
    assert b"".join(tokens) == text
    assert all(tokens)
    assert count_tokens(text) == len(tokens)
    total, ends = cut_blocks(text, 32)
    assert total == len(tokens)
    assert ends == [len(b"".join(tokens[: at + 32])) for at in range(0, total - 31, 32)]


@given(texts, texts)
def test_a_prefix_keeps_its_blocks_whatever_follows(text: bytes, more: bytes) -> None:
    ends = cut_blocks(text, 32)[1]
    longer = cut_blocks(text + more, 32)[1]
    # The last token of a text can grow with what follows it, and so can a block that ends with the text.
    whole = ends[:-1] if ends and ends[-1] == len(text) else ends
    assert longer[: len(whole)] == whole


@given(texts, texts, st.sampled_from([8, 32, 100]))
def test_cutting_on_equals_cutting_the_whole(text: bytes, more: bytes, block_tokens: int) -> None:
    ends = [end for end in cut_blocks(text, block_tokens)[1] if end < len(text)]
    begin = ends[-1] if ends else 0
    rest, further = cut_more_blocks(text, ends, more, block_tokens)
    assert rest == (text + more)[begin:]
    assert [*ends, *(begin + end for end in further)] == cut_blocks(text + more, block_tokens)[1]


@given(texts)
def test_ids_lead_back_to_the_text(text: bytes) -> None:
    vocabulary = Vocabulary()
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.lists(st.integers(0, 2**32 - 1), max_size=300))
def test_unknown_ids_are_one_token_each(ids: list[int]) -> None:
    assert count_tokens(Vocabulary().decode(ids)) == len(ids)


def test_two_vocabularies_give_one_token_one_id() -> None:
    text = random_words(5_000, 1)
    assert Vocabulary().encode(text) == Vocabulary().encode(text)


def test_random_words_come_to_four_bytes_a_token() -> None:
    tokens = [count_tokens(random_words(2_048, seed)) for seed in range(100)]
    assert 505 <= sum(tokens) / 100 <= 525
    assert len(set(tokens)) > 20


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("A fleet of workers keeps the keys and values of every prompt that it has seen before. " * 9, 3.6, 4.6),
        ("def answer(self, request: Request) -> Reply:\n    return self._replies[request.id]\n" * 9, 2.5, 4.2),
        ("请求是它的整个提示的函数" * 50, 1.5, 2.2),
        ("3141592653589793" * 50, 1.0, 1.0),
        ("a" * 5_000, 15.0, 16.0),
    ],
)
def test_bytes_a_token_depend_on_the_text(text: str, low: float, high: float) -> None:
    data = text.encode()
    assert low <= len(data) / count_tokens(data) <= high


def test_a_change_changes_its_block_and_all_after_it() -> None:
    text = random_words(20_000, 3)
    changed = text[:9_000] + b"!" + text[9_001:]
    root = root_hash("sim", "")
    one = hash_blocks(text, cut_blocks(text, 64)[1], root)
    two = hash_blocks(changed, cut_blocks(changed, 64)[1], root)
    same = sum(a == b for a, b in zip(one, two, strict=False))
    first = next(at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert same == first > 0


def test_models_and_salts_share_no_block() -> None:
    text = random_words(2_000, 3)
    ends = cut_blocks(text, 64)[1]
    heads = {hash_blocks(text, ends, root_hash(*who))[0] for who in (("a", ""), ("b", ""), ("a", "x"), ("a", "y"))}
    assert len(heads) == 4


def test_an_answer_has_as_many_tokens_as_were_generated() -> None:
    for start, end in ((0, 1), (0, 500), (37, 1_000), (BOOK_TOKENS - 5, BOOK_TOKENS + 5), (3, 2 * BOOK_TOKENS + 9)):
        text = BOOK.read(12_345, start, end)
        assert text == b"".join(BOOK.read_tokens(12_345, start, end))
        assert count_tokens(text) == end - start


@pytest.mark.parametrize("said_tokens", [0, 1, 2, 5, 40, 900])
def test_a_prompt_that_ends_in_an_answer_is_answered_by_its_rest(said_tokens: int) -> None:
    prompt = b"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    place = BOOK.place(prompt)
    assert BOOK.place(prompt + BOOK.read(place, 0, said_tokens)) == (place + said_tokens) % BOOK_TOKENS


def test_a_plain_prompt_is_continued_too() -> None:
    prompt = b"once upon a time "
    place = BOOK.place(prompt)
    assert BOOK.place(prompt + BOOK.read(place, 0, 20)) == (place + 20) % BOOK_TOKENS


def test_what_one_process_named_another_reads_from_their_file(tmp_path: Path) -> None:
    file = str(tmp_path / "vocabulary")
    one, other = Vocabulary(file=file), Vocabulary(file=file)
    texts = [b"the quick brown fox " * 20, "жук и кот".encode(), b"another text, later"]
    for text in texts:
        assert other.decode(one.encode(text)) == text
        assert one.decode(other.encode(text[::-1])) == text[::-1]
    assert Vocabulary().decode(one.encode(texts[0])) != texts[0]

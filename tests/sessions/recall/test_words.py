from __future__ import annotations

import sqlite3

from hypothesis import given
from hypothesis import strategies as st

from router.sessions.recall import rarity
from router.sessions.recall.words import MAX_QUERY_WORDS, MAX_WORD_CHARS, plain_words, query_words, spaced


def test_words_are_letters_and_digits_once_each_in_order() -> None:
    assert query_words("Is it snake_case, or (is it) 3.14?") == ["is", "it", "snake", "case", "or", "3", "14"]


def test_scripts_without_spaces_are_taken_by_pairs() -> None:
    assert query_words("密码是 4567 吗") == ["密码", "码是", "4567", "吗"]
    assert query_words("東京tower") == ["東京", "tower"]


def test_a_query_has_so_many_words_at_most() -> None:
    assert len(query_words(" ".join(str(n) for n in range(1000)))) == MAX_QUERY_WORDS


def test_plain_words_have_no_accents_however_these_are_written() -> None:
    assert plain_words("Zürich, Zu\u0308rich! CAFÉ_x²") == ["zurich", "cafe", "x2"]
    assert plain_words("がか 한글 берёза") == ["がか", "한글", "береза"]


@given(st.text())
def test_plain_words_are_short_and_stay_as_they_are(text: str) -> None:
    words = plain_words(text)
    assert all(0 < len(word) <= MAX_WORD_CHARS and word.isalnum() for word in words)
    assert plain_words(" ".join(words)) == words


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_word_is_one_that_a_full_text_search_takes(query: str) -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE VIRTUAL TABLE word USING fts5 (text)")
        connection.execute("INSERT INTO word VALUES (?)", (spaced(query),))
        for word in query_words(query):
            connection.execute("SELECT rowid FROM word WHERE word MATCH ?", (f'"{word}"',)).fetchall()
    connection.close()


def test_a_rare_word_outweighs_two_that_are_everywhere() -> None:
    everywhere = list(range(1, 101))
    assert rarity.rank([everywhere, everywhere, [200]], 101)[0][0] == 200


def test_of_equals_the_newest_is_first() -> None:
    assert [piece for piece, _ in rarity.rank([[1, 3, 2]], 100)] == [3, 2, 1]


def test_no_words_rank_nothing() -> None:
    assert rarity.rank([], 100) == rarity.rank([[]], 100) == []


def test_the_share_of_a_piece_with_all_words_is_one_and_a_common_word_adds_little() -> None:
    shares = dict(rarity.rank([[1, 2], list(range(2, 100))], 100))
    assert shares[2] == 1
    assert shares[1] > 0.99
    assert shares[50] < 0.01


def test_a_word_that_no_piece_has_makes_all_shares_smaller() -> None:
    assert dict(rarity.rank([[1], []], 10))[1] < 0.5

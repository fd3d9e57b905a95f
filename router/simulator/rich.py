"""A book that is hard to cut: emoji, scripts of many bytes, line separators and quotes, in tokens that split characters.

Pure and deterministic. The whole text is valid Unicode. Its tokens are runs of one to six bytes that ignore character
borders: a token may be one byte of a character, or the end of one character and the beginning of the next.
"""

from random import Random

from router.simulator.answers import BOOK_TOKENS, Book, is_inside

FIRST_ID = 1 << 30  # above every id of a vocabulary
_ATOMS = (
    *("🙂", "🚀", "\U0001f469\u200d\U0001f680", "👍🏽", "🇩🇪", "\U0001d4b3", "𐍈"),
    *("请", "求", "词", "元", "こん", "にちは", "한국", "ไทย", "हिन्दी", "עברית", "سلام"),
    *("é", "ü", "ñ", "ß", "e\u0301", "Ω", "ж", "½", "—", "…", "€"),
    *(" the", " fleet", " keeps", " what", " it", " has", " seen", ". ", ", ", '"', "\\", "\n", "\t", "{}"),
    *("\u0085", "\u2028", "\u00a0", "\u200b"),
)
_TOKEN_BYTES = (1, 1, 2, 2, 3, 3, 4, 5, 6)


def rich_book() -> Book:
    """The book for the setting `answers="bytes"`."""
    random = Random(20_161)
    text = "".join(random.choices(_ATOMS, k=BOOK_TOKENS * 2)).encode()
    tokens, start = [], 0
    for _ in range(BOOK_TOKENS - 1):
        end = start + random.choice(_TOKEN_BYTES)
        tokens.append(text[start:end])
        start = end
    end = start + 1
    while is_inside(text, end):
        end += 1
    return Book([*tokens, text[start:end]], FIRST_ID)

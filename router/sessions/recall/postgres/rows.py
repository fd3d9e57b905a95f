"""Adds, finds and deletes pieces of items in the tables of ``schema.py``, inside a transaction. Every query names owner and
session, and passes text from outside as a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from router.core.request.request import Sid, Tenant
from router.sessions.recall.chunks import MAX_NUMBER, PIECE_BITS, last_place, pieces
from router.sessions.recall.index import Passage
from router.sessions.recall.postgres.schema import SCHEMA
from router.sessions.recall.words import MAX_QUERY_WORDS, plain_words

MAX_POSTINGS = 2000
"""A word in more pieces of a session says little. It is read, with its newest pieces, only if all words of the query are
such."""
TRIM_SHARE = 16
"""When a session has too many pieces, one in so many of the allowed number is deleted besides: rarely, and many at once."""

MINE = "s.owner = $1 AND s.sid = $2"
MODEL = f"(SELECT id FROM {SCHEMA}.model WHERE name = $3 AND dimensions = $4)"  # noqa: S608
STEMS = "unnest(coalesce(nullif(ts_lexize('pg_catalog.english_stem', word), '{}'), ARRAY[word])) AS stem"
"""Stems of a word. A stop word, for which the dictionary has no stem, is its own stem: its rarity decides its weight."""

# A word in df of n pieces has the weight of ``rarity.py``.
BY_WORDS = f"""
WITH asked AS (
    SELECT DISTINCT stem FROM unnest($3::text[]) AS word, {STEMS}
), found AS (
    SELECT s.pieces, ARRAY(
        SELECT place FROM unnest(w.places) AS place WHERE place BETWEEN s.first AND $4
    ) AS places
    FROM {SCHEMA}.session s CROSS JOIN asked LEFT JOIN {SCHEMA}.word w ON w.session = s.id AND w.stem = asked.stem
    WHERE {MINE}
), term AS (
    SELECT places, ln(1 + (greatest(pieces - df, 0) + 0.5::float8) / (df + 0.5::float8)) AS rarity
    FROM found, cardinality(places) AS df
    WHERE df <= $5 OR NOT EXISTS (SELECT FROM found WHERE cardinality(places) BETWEEN 1 AND $5)
), piece AS (
    SELECT place >> {PIECE_BITS} AS number, sum(rarity) AS weight FROM term, unnest(places) AS place GROUP BY place
)
SELECT number, max(weight) / (SELECT sum(rarity) FROM term) AS share
FROM piece GROUP BY number ORDER BY share DESC, number DESC LIMIT $6
"""  # noqa: S608
BY_MEANING = f"""
SELECT v.place >> {PIECE_BITS} AS number
FROM {SCHEMA}.session s JOIN {SCHEMA}.vector v ON v.session = s.id
WHERE {MINE} AND v.model = {MODEL} AND v.place BETWEEN s.first AND $5
ORDER BY v.body <#> $6::real[]::halfvec, v.place DESC LIMIT $7
"""  # noqa: S608
BEGIN = f"""
INSERT INTO {SCHEMA}.session AS s (owner, sid) VALUES ($1, $2)
ON CONFLICT (owner, sid) DO UPDATE SET touched_at = now() RETURNING id, newest
"""  # noqa: S608
ADD_PIECES = f"INSERT INTO {SCHEMA}.piece SELECT $1, place, text FROM unnest($2::int[], $3::text[]) AS p (place, text)"  # noqa: S608
ADD_WORDS = f"""
INSERT INTO {SCHEMA}.word AS w
SELECT $1, stem, array_agg(DISTINCT place ORDER BY place)
FROM unnest($2::int[], $3::text[]) AS p (place, words), unnest(string_to_array(words, ' ')) AS word, {STEMS}
GROUP BY stem
ON CONFLICT (session, stem) DO UPDATE SET places =
    (w.places || excluded.places)[greatest(cardinality(w.places) + cardinality(excluded.places) - {MAX_POSTINGS}, 1):]
"""  # noqa: S608
COUNT = f"""
UPDATE {SCHEMA}.session s SET newest = greatest(newest, $3), pieces = pieces + $4 WHERE {MINE} RETURNING pieces
"""  # noqa: S608
WITHOUT_VECTOR = f"""
SELECT p.session, p.place, p.text FROM {SCHEMA}.session s JOIN {SCHEMA}.piece p ON p.session = s.id
WHERE {MINE} AND p.place >
    coalesce((SELECT max(v.place) FROM {SCHEMA}.vector v WHERE v.session = s.id AND v.model = {MODEL}), -1)
ORDER BY p.place LIMIT $5
"""  # noqa: S608
ADD_VECTOR = f"""
INSERT INTO {SCHEMA}.vector SELECT s.id, {MODEL}, $6, $7::real[]::halfvec FROM {SCHEMA}.session s WHERE {MINE} AND s.id = $5
ON CONFLICT DO NOTHING
"""  # noqa: S608


class Split(NamedTuple):
    """Pieces in order: their places, texts, and words joined by spaces; and the greatest number of an item."""

    places: list[int]
    texts: list[str]
    words: list[str]
    newest: int


class Model(NamedTuple):
    name: str
    dimensions: int


class Piece(NamedTuple):
    session: int
    place: int
    text: str


def split(passages: Sequence[Passage]) -> Split:
    """Linear in the texts: tens of microseconds for each piece."""
    known = [passage for passage in passages if passage.number <= MAX_NUMBER]
    found = [
        (passage.number << PIECE_BITS | at, piece)
        for passage in known
        for at, piece in enumerate(pieces(_storable(passage.text)))
    ]
    texts = [text for _, text in found]
    words = [" ".join(plain_words(text)) for text in texts]
    return Split([place for place, _ in found], texts, words, max((passage.number for passage in known), default=0))


def query_words(query: str) -> list[str]:
    return plain_words(query)[:MAX_QUERY_WORDS]


async def newest(connection: Any, sid: Sid, owner: Tenant) -> int:
    found = await connection.fetchval(f"SELECT newest FROM {SCHEMA}.session s WHERE {MINE}", *_key(sid, owner))  # noqa: S608
    return found or 0


async def add(connection: Any, sid: Sid, owner: Tenant, new: Split, max_session_pieces: int) -> None:
    """Adds pieces of items after the newest, and deletes the oldest where there are too many. Other calls for the session wait
    meanwhile."""
    session, newest = await connection.fetchrow(BEGIN, *_key(sid, owner))
    first = next((at for at, place in enumerate(new.places) if place > last_place(newest)), len(new.places))
    places = new.places[first:]
    await connection.execute(ADD_PIECES, session, places, new.texts[first:])
    await connection.execute(ADD_WORDS, session, places, new.words[first:])
    kept = await connection.fetchval(COUNT, *_key(sid, owner), new.newest, len(places))
    if kept > max_session_pieces:
        await _trim(connection, session, max_session_pieces - max_session_pieces // TRIM_SHARE)


async def _trim(connection: Any, session: int, kept: int) -> None:
    gone = await connection.fetchval(
        f"SELECT place FROM {SCHEMA}.piece WHERE session = $1 ORDER BY place DESC OFFSET $2 LIMIT 1",  # noqa: S608
        session,
        kept,
    )
    await connection.execute(f"DELETE FROM {SCHEMA}.piece WHERE session = $1 AND place <= $2", session, gone)  # noqa: S608
    await connection.execute(
        f"DELETE FROM {SCHEMA}.word WHERE session = $1 AND places[cardinality(places)] <= $2",  # noqa: S608
        session,
        gone,
    )
    if await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.vector") is not None:
        await connection.execute(f"DELETE FROM {SCHEMA}.vector WHERE session = $1 AND place <= $2", session, gone)  # noqa: S608
    await connection.execute(
        f"UPDATE {SCHEMA}.session SET first = $2 + 1, pieces = $3 WHERE id = $1",  # noqa: S608
        session,
        gone,
        kept,
    )


async def by_words(
    connection: Any, sid: Sid, owner: Tenant, words: Sequence[str], upto: int, limit: int
) -> list[tuple[int, float]]:
    """Numbers of items, each once, with the share of the query in their best piece; best first."""
    found = await connection.fetch(BY_WORDS, *_key(sid, owner), words, last_place(upto), MAX_POSTINGS, limit)
    return [(number, share) for number, share in found]


async def by_meaning(
    connection: Any, sid: Sid, owner: Tenant, model: Model, vector: Sequence[float], upto: int, limit: int
) -> list[int]:
    """Numbers of the items of the ``limit`` nearest pieces, each once, best first. Linear in the pieces of the session."""
    found = await connection.fetch(BY_MEANING, *_key(sid, owner), *model, last_place(upto), vector, limit)
    return list(dict.fromkeys(number for (number,) in found))


async def without_vector(connection: Any, sid: Sid, owner: Tenant, model: Model, limit: int) -> list[Piece]:
    """The first pieces after the last that has a vector of the model: vectors are added in order."""
    return [Piece(*row) for row in await connection.fetch(WITHOUT_VECTOR, *_key(sid, owner), *model, limit)]


async def add_vectors(
    connection: Any,
    sid: Sid,
    owner: Tenant,
    model: Model,
    embedded: Sequence[Piece],
    vectors: Sequence[Sequence[float]],
) -> None:
    """Adds nothing where a piece has a vector already, or the session has begun anew."""
    key = _key(sid, owner)
    rows = [(*key, *model, piece.session, piece.place, vector) for piece, vector in zip(embedded, vectors, strict=True)]
    await connection.executemany(ADD_VECTOR, rows)


async def forget(connection: Any, sid: Sid, owner: Tenant) -> None:
    await connection.execute(f"DELETE FROM {SCHEMA}.session s WHERE {MINE}", *_key(sid, owner))  # noqa: S608


async def sweep(connection: Any, lifetime_s: float, limit: int) -> int:
    """Deletes at most ``limit`` sessions to which nothing was added for so long. Returns their number."""
    deleted = await connection.fetch(
        f"""DELETE FROM {SCHEMA}.session WHERE id IN (
            SELECT id FROM {SCHEMA}.session WHERE touched_at < now() - make_interval(secs => $1)
            ORDER BY touched_at LIMIT $2 FOR UPDATE SKIP LOCKED
        ) RETURNING id""",  # noqa: S608
        lifetime_s,
        limit,
    )
    return len(deleted)


def _storable(text: str) -> str:
    """Texts of PostgreSQL hold neither NUL nor half a surrogate pair."""
    return text.replace("\0", " ").encode(errors="replace").decode()


def _key(sid: Sid, owner: Tenant) -> tuple[bytes, bytes]:
    """Bytes, since text columns refuse some characters."""
    return owner.encode(), sid.encode()

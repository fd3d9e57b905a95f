"""The tables. The name of their schema has their version, so routers of two releases side by side each have their own tables.
An index mirrors the log, so a newer release builds its own, and nothing is migrated.

A piece's ``place`` is its item's number << 7 | its place in the item. ``word`` says in which pieces of a session a word's stem
is: one row each, found by its key, where one index of all sessions' words would be searched for every session's. A vector is
found by looking at all of a session's that its model made: they are its own rows, side by side, bounded in number, and an
approximate index knows no sessions: it would find others' vectors first and drop them.
"""

from __future__ import annotations

from typing import Any

SCHEMA = "warmroute_recall_1"
LOCK = 0x77617278
"""Number of an advisory lock: of two routers that start at once, one creates the tables before the other."""

WORDS = (
    f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
    f"""CREATE TABLE {SCHEMA}.session (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        owner bytea NOT NULL,
        sid bytea NOT NULL,
        newest int NOT NULL DEFAULT 0,
        first int NOT NULL DEFAULT 0,
        pieces int NOT NULL DEFAULT 0,
        touched_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (owner, sid)
    )""",
    f"CREATE INDEX session_touched_at ON {SCHEMA}.session (touched_at)",
    f"""CREATE TABLE {SCHEMA}.piece (
        session bigint NOT NULL REFERENCES {SCHEMA}.session ON DELETE CASCADE,
        place int NOT NULL,
        text text NOT NULL,
        PRIMARY KEY (session, place)
    )""",
    f"""CREATE TABLE {SCHEMA}.word (
        session bigint NOT NULL REFERENCES {SCHEMA}.session ON DELETE CASCADE,
        stem text COLLATE "C" NOT NULL,
        places int[] NOT NULL,
        PRIMARY KEY (session, stem)
    ) WITH (fillfactor = 80)""",
)
VECTORS = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    f"""CREATE TABLE {SCHEMA}.model (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL,
        dimensions int NOT NULL,
        UNIQUE (name, dimensions)
    )""",
    f"""CREATE TABLE {SCHEMA}.vector (
        session bigint NOT NULL REFERENCES {SCHEMA}.session ON DELETE CASCADE,
        model int NOT NULL REFERENCES {SCHEMA}.model,
        place int NOT NULL,
        body halfvec NOT NULL,
        PRIMARY KEY (session, model, place)
    )""",
)
"""Vectors of several models may be there together. Only vectors of one model are compared."""


async def create(connection: Any, *, has_vectors: bool) -> None:
    """Creates missing tables, in a transaction of the caller. Where they exist, the user needs no right to create them. Vectors
    need the extension pgvector (0.7)."""
    parts = {f"{SCHEMA}.word": WORDS} | ({f"{SCHEMA}.vector": VECTORS} if has_vectors else {})
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    for last_table, statements in parts.items():
        if await connection.fetchval("SELECT to_regclass($1)", last_table) is None:
            for statement in statements:
                await connection.execute(statement)


async def keep_model(connection: Any, name: str, dimensions: int) -> None:
    """Name and dimensions tell the vectors of models apart."""
    await connection.execute(
        f"INSERT INTO {SCHEMA}.model (name, dimensions) VALUES ($1, $2) ON CONFLICT DO NOTHING",  # noqa: S608
        name,
        dimensions,
    )

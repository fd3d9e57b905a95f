"""Sessions: their store, their bounds, and how their tokens are counted."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from router.config.section import SECRET, Section
from router.core.tenants.tenant import OnBusy


class SessionsConfig(Section, frozen=True):
    """The state that the router keeps: sessions, responses, conversations."""

    store: Annotated[
        str,
        Meta(
            description="Where: sqlite:///PATH, memory://, redis://, rediss://, redis+sentinel://HOST:PORT,…/SERVICE/DB, "
            "redis+cluster://HOST:PORT,…; none: no state is kept; empty: SQLite in the state directory.",
            extra=SECRET,
        ),
    ] = ""
    state_dir: Annotated[
        str, Meta(description="Directory of what the router keeps itself; empty: ~/.local/state/warmroute.")
    ] = ""
    secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes that sessions' keys in the store are made of; one for all replicas; "
            "empty: made once, and kept in the state directory.",
            extra=SECRET,
        ),
    ] = ""
    secret_file: Annotated[str, Meta(description="File that holds secret instead.")] = ""
    lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a session lives behind its last use; 0: for ever.")
    ] = 86_400.0
    response_lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a response lives; 0: for ever.")
    ] = 2_592_000.0
    conversation_lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a conversation lives behind its last use; 0: for ever.")
    ] = 0.0
    on_busy: Annotated[OnBusy, Meta(description="What a turn does while another of its session has not ended.")] = (
        "queue"
    )
    max_wait_s: Annotated[
        float, Meta(ge=0, le=3600, description="Most seconds that a turn waits for those of its session before it.")
    ] = 60.0
    max_waiting: Annotated[
        int, Meta(ge=0, le=10_000, description="Turns of one session that may wait; others are refused.")
    ] = 64
    max_entries: Annotated[
        int,
        Meta(
            ge=10,
            le=10**9,
            description="Entries of a session's log, of turns that failed, too; full, it takes no more.",
        ),
    ] = 100_000
    max_session_bytes: Annotated[
        int, Meta(ge=1 << 16, le=1 << 40, description="The same in bytes, as it is kept in memory.")
    ] = 64 << 20
    lease_s: Annotated[
        float,
        Meta(ge=1, le=3600, description="Seconds that a turn's claim on its session outlives a replica that died."),
    ] = 15.0
    timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds that Redis may take for one call; beyond, it is unavailable.")
    ] = 0.2
    sqlite_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="Seconds that a call may wait for SQLite to begin it; beyond, it is not done, and the store is "
            "unavailable.",
        ),
    ] = 5.0
    max_store_calls: Annotated[
        int, Meta(ge=1, le=10_000, description="Connections to Redis; calls of one tenant that may wait for the store.")
    ] = 256
    max_tenant_sessions: Annotated[
        int,
        Meta(
            ge=1,
            le=10**12,
            description="Sessions, conversations and chains of responses that a tenant may have together, and responses that "
            "it may have; beyond, what would make another is refused until some are deleted or expire.",
        ),
    ] = 1_000_000
    max_tenant_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="Bytes that a tenant may have stored, roughly; beyond, turns are refused until it deletes some.",
        ),
    ] = 4 << 30
    max_give_backs: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Claims of turns that failed, which a store that is away is asked to take back; others' leases end by "
            "themselves.",
        ),
    ] = 1000
    sqlite_synchronous: Annotated[
        Literal["NORMAL", "FULL"],
        Meta(description="NORMAL survives the router's death, FULL also the machine's, at the price of a disk flush."),
    ] = "NORMAL"
    wait_replicas: Annotated[
        int, Meta(ge=0, le=10, description="Redis replicas that must have a write before it counts (WAIT).")
    ] = 0
    max_journal_bytes: Annotated[
        int,
        Meta(ge=0, le=1 << 40, description="Ends of turns kept on disk while Redis is away, in bytes; 0: no journal."),
    ] = 64 << 20
    stateless_fallback: Annotated[
        bool,
        Meta(description="While the store is away, answer turns of named sessions without their history, and say so."),
    ] = False
    encryption_secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes by which all that is stored is encrypted; empty: it is not.",
            extra=SECRET,
        ),
    ] = ""
    encryption_secret_file: Annotated[str, Meta(description="File that holds encryption_secret instead.")] = ""
    max_hot_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="Histories kept in memory between turns, in bytes.")
    ] = 256 << 20


ENCODINGS = ("cl100k_base", "o200k_base", "o200k_harmony")
"""Of tiktoken."""

WORKER, ESTIMATE = "worker", "estimate"

TOKENIZERS = (WORKER, ESTIMATE, *(f"tiktoken:{encoding}" for encoding in ENCODINGS))


class TokensConfig(Section, frozen=True):
    """How many tokens a message of a session is."""

    tokenizer: Annotated[
        str,
        Meta(
            description="Who counts, for models that no table of models names: worker (its /tokenize), "
            "tiktoken:o200k_base, tiktoken:o200k_harmony, tiktoken:cl100k_base, the path of a tokenizer.json, or estimate: "
            "bytes, by what workers reported; empty: estimate."
        ),
    ] = ""
    vocabulary_dir: Annotated[
        str, Meta(description="Directory of tiktoken's vocabularies; empty: that of TIKTOKEN_CACHE_DIR.")
    ] = ""
    media_tokens: Annotated[
        int, Meta(ge=0, le=1_000_000, description="What an image, or another part that is no text, is taken for.")
    ] = 1024


class ModelConfig(Section, frozen=True):
    """One table for each model, by its name, or by a pattern such as `"gpt-oss-*"`: the name itself goes before patterns, and
    these in their order."""

    tokenizer: Annotated[str, Meta(description="As tokens.tokenizer; empty: that one.")] = ""

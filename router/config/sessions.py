"""Sessions: their store, their bounds, and how their tokens are counted."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from router.config.section import SECRET, Section
from router.core.tenants.tenant import OnBusy


class SessionsConfig(Section, frozen=True):
    """The state that the router keeps: sessions, responses and conversations."""

    store: Annotated[
        str,
        Meta(
            description="Where sessions are stored: sqlite:///PATH, memory://, redis://, rediss://, "
            "redis+sentinel://HOST:PORT,…/SERVICE/DB, redis+cluster://HOST:PORT,…; none: the router keeps no state; "
            "empty: SQLite in sessions.state_dir.",
            extra=SECRET,
        ),
    ] = ""
    state_dir: Annotated[
        str, Meta(description="Directory for the router's own files; empty: ~/.local/state/warmroute.")
    ] = ""
    secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes from which sessions' keys in the store are made; the same for all "
            "replicas. Empty: the router makes one and keeps it in sessions.state_dir.",
            extra=SECRET,
        ),
    ] = ""
    secret_file: Annotated[str, Meta(description="File that holds sessions.secret.")] = ""
    lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a session lives after its last use; 0: for ever.")
    ] = 86_400.0
    response_lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a response lives; 0: for ever.")
    ] = 2_592_000.0
    conversation_lifetime_s: Annotated[
        float, Meta(ge=0, le=10**9, description="Seconds that a conversation lives after its last use; 0: for ever.")
    ] = 0.0
    on_busy: Annotated[
        OnBusy,
        Meta(
            description="What a turn does while another turn of its session is in progress: wait, be refused, or continue "
            "in a copy."
        ),
    ] = "queue"
    max_wait_s: Annotated[
        float, Meta(ge=0, le=3600, description="Most seconds for which a turn waits for earlier turns of its session.")
    ] = 60.0
    max_waiting: Annotated[
        int, Meta(ge=0, le=10_000, description="Turns of one session that may wait; further ones are refused.")
    ] = 64
    max_entries: Annotated[
        int,
        Meta(
            ge=10,
            le=10**9,
            description="Most entries of a session's log, failed turns included. A full log takes no more.",
        ),
    ] = 100_000
    max_session_bytes: Annotated[
        int,
        Meta(
            ge=1 << 16,
            le=1 << 40,
            description="Most bytes of a session's log, as it is kept in memory. A full log takes no more.",
        ),
    ] = 64 << 20
    lease_s: Annotated[
        float,
        Meta(
            ge=1, le=3600, description="Seconds for which a session stays locked after the router that locked it died."
        ),
    ] = 15.0
    timeout_s: Annotated[
        float,
        Meta(
            gt=0, le=60, description="Seconds in which Redis must answer a call; after that it counts as unavailable."
        ),
    ] = 0.2
    max_store_calls: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Redis: most connections. SQLite: most calls of one tenant that may wait."),
    ] = 256
    max_tenant_sessions: Annotated[
        int,
        Meta(
            ge=1,
            le=10**12,
            description="Most sessions, conversations and chains of responses that a tenant may store together, and most "
            "responses. Further ones are refused until some are deleted or expire.",
        ),
    ] = 1_000_000
    max_tenant_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="Most bytes that a tenant may store, roughly. Beyond it the tenant's turns are refused until it "
            "deletes some.",
        ),
    ] = 4 << 30
    sqlite_synchronous: Annotated[
        Literal["NORMAL", "FULL"],
        Meta(
            description="NORMAL survives the router's death. FULL also survives the machine's, and costs a disk flush per "
            "write."
        ),
    ] = "NORMAL"
    wait_replicas: Annotated[
        int, Meta(ge=0, le=10, description="Redis replicas that must have a write before it counts (WAIT).")
    ] = 0
    max_journal_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Most bytes of finished turns kept on disk while Redis is away; 0: no journal.",
        ),
    ] = 64 << 20
    stateless_fallback: Annotated[
        bool,
        Meta(description="Answer turns of named sessions without their history while the store is away, and say so."),
    ] = False
    encryption_secret: Annotated[
        str,
        Meta(
            description="Secret of at least 16 bytes with which all stored data is encrypted; empty: no encryption.",
            extra=SECRET,
        ),
    ] = ""
    encryption_secret_file: Annotated[str, Meta(description="File that holds sessions.encryption_secret.")] = ""
    max_cache_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="Most bytes of histories kept in memory between turns.")
    ] = 256 << 20


ENCODINGS = ("cl100k_base", "o200k_base", "o200k_harmony")
"""Encodings of tiktoken."""

WORKER, ESTIMATE = "worker", "estimate"

TOKENIZERS = (WORKER, ESTIMATE, *(f"tiktoken:{encoding}" for encoding in ENCODINGS))


class TokensConfig(Section, frozen=True):
    """How the tokens of a session's messages are counted."""

    tokenizer: Annotated[
        str,
        Meta(
            description="Tokenizer for models that no models.NAME table names: worker (its /tokenize), tiktoken:o200k_base, "
            "tiktoken:o200k_harmony, tiktoken:cl100k_base, the path of a tokenizer.json, or estimate (bytes per token "
            "as workers report). Empty: estimate."
        ),
    ] = ""
    vocabulary_dir: Annotated[
        str, Meta(description="Directory of tiktoken's vocabularies; empty: TIKTOKEN_CACHE_DIR.")
    ] = ""
    media_tokens: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Tokens that an image, or another part that is not text, counts for.")
    ] = 1024


class ModelConfig(Section, frozen=True):
    """One table for each model, named by the model or by a pattern such as `"gpt-oss-*"`. An exact name wins over patterns, and
    patterns apply in their order."""

    tokenizer: Annotated[
        str, Meta(description="Tokenizer for this model, with the values of tokens.tokenizer; empty: tokens.tokenizer.")
    ] = ""

"""How histories are kept within their models' windows, and how what was cut is found again."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from router.config.section import SECRET, Section
from router.core.tenants.tenant import ContextStrategy

BUNDLED_MODEL = "all-MiniLM-L6-v2-int8"
"""Which makes vectors in this process."""


class ContextConfig(Section, frozen=True):
    """How a session's history is kept within its model's window. Tenants, sessions and requests may wish otherwise."""

    strategy: Annotated[
        ContextStrategy,
        Meta(
            description="none: a prompt that is too long is refused; window: it is cut at marks; summary: with notes on what "
            "was cut; recall: with a search of it for each question; hybrid: with both."
        ),
    ] = "hybrid"
    high_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="A history of so many tokens is cut; 0: three quarters of what the window leaves.",
        ),
    ] = 0
    low_tokens: Annotated[
        int,
        Meta(
            ge=0, le=10**9, description="Tokens of a history that a cut leaves; 0: a quarter of what the window leaves."
        ),
    ] = 0
    max_tokens: Annotated[
        int,
        Meta(ge=0, le=10**9, description="Tokens of a session's whole prompt; 0: as many as the model's window has."),
    ] = 0
    answer_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="Tokens left free for an answer whose request does not bound it; at most a quarter of the window.",
        ),
    ] = 4096
    summary_model: Annotated[
        str, Meta(description="Model of the fleet that writes notes; empty: each session's own.")
    ] = ""
    summary_url: Annotated[
        str,
        Meta(description="Base URL of an OpenAI-compatible API that writes them instead, such as https://HOST/v1."),
    ] = ""
    summary_api_key: Annotated[str, Meta(description="API key for summary_url.", extra=SECRET)] = ""
    summary_api_key_file: Annotated[str, Meta(description="File that holds summary_api_key instead.")] = ""
    summary_tokens: Annotated[
        int, Meta(ge=16, le=100_000, description="Most tokens of the notes on what one cut removes.")
    ] = 400
    summary_source_tokens: Annotated[
        int,
        Meta(
            ge=200,
            le=10_000_000,
            description="Most tokens that one request for notes tells of; what is more is told of part by part. Less where the "
            "window of a model of the fleet is smaller.",
        ),
    ] = 32_000
    summary_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds that notes may take, before another replica may try.")
    ] = 60.0
    summary_retry_s: Annotated[
        float,
        Meta(
            gt=0, le=3600, description="Seconds to the next attempt when they came to nothing; twice as long each time."
        ),
    ] = 10.0
    summary_tokens_per_day: Annotated[
        int,
        Meta(
            ge=0, le=10**12, description="Tokens, of prompts and notes, that a tenant's notes may cost; 0: any number."
        ),
    ] = 0
    max_waiting: Annotated[int, Meta(ge=1, le=1_000_000, description="Sessions that may wait for the janitor.")] = (
        10_000
    )
    janitors: Annotated[int, Meta(ge=1, le=1000, description="Sessions that it looks at at once.")] = 4
    recall_index: Annotated[
        str,
        Meta(
            description="Where what left prompts is searched: sqlite, a file in the state directory, which may be deleted and "
            "is made again; memory, also for sqlite where the store is in memory or encrypted; "
            "postgresql://USER@HOST:PORT/DATABASE, which routers share; or none.",
            extra=SECRET,
        ),
    ] = "sqlite"
    recall_connections: Annotated[
        int, Meta(ge=1, le=1000, description="Connections to PostgreSQL, where that is the index; other calls wait.")
    ] = 8
    recall_lifetime_s: Annotated[
        float,
        Meta(
            ge=0,
            le=10**9,
            description="Seconds that a session stays in the index behind the last that left its prompt; if more leaves it "
            "later, all is indexed again; 0: for ever.",
        ),
    ] = 2_592_000.0
    embed_model: Annotated[
        str,
        Meta(
            description=f"Model that searches go by meaning with, beside words: {BUNDLED_MODEL}, of the extra recall-onnx; one "
            "that embed_url serves; or without that, one of the fleet; empty: words alone."
        ),
    ] = ""
    embed_url: Annotated[
        str, Meta(description="URL of an OpenAI-compatible /embeddings; this router's own /v1/embeddings will do.")
    ] = ""
    embed_dimensions: Annotated[
        int, Meta(ge=0, le=65_536, description=f"Of its vectors; required of all but {BUNDLED_MODEL}.")
    ] = 0
    embed_api_key: Annotated[str, Meta(description="API key for embed_url.", extra=SECRET)] = ""
    embed_api_key_file: Annotated[str, Meta(description="File that holds embed_api_key instead.")] = ""
    recall_tokens: Annotated[
        int, Meta(ge=0, le=100_000, description="Most tokens of what is recalled beside one question.")
    ] = 150
    recall_items: Annotated[int, Meta(ge=1, le=1000, description="Items that a search may find for it.")] = 10
    recall_timeout_s: Annotated[
        float, Meta(gt=0, le=10, description="Seconds that a search may take; beyond, the question goes alone.")
    ] = 0.1
    max_recall_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 40,
            description="Texts and vectors that SQLite's index may have, which takes up to twice that; sessions that were not "
            "added to for longest go first.",
        ),
    ] = 1 << 30
    max_recall_calls: Annotated[int, Meta(ge=1, le=10_000, description="Calls that may wait for it.")] = 256

    @property
    def recall_in_postgres(self) -> bool:
        return self.recall_index.startswith(("postgresql://", "postgres://"))

"""How histories are kept within their models' windows, and how what was cut is found again."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from router.config.section import SECRET, Section
from router.core.tenants.tenant import ContextStrategy

BUNDLED_MODEL = "all-MiniLM-L6-v2-int8"
"""The embedding model that runs in this process."""


class ContextConfig(Section, frozen=True):
    """How a session's history is kept within its model's window. Tenants, sessions and requests may override it."""

    strategy: Annotated[
        ContextStrategy,
        Meta(
            description="How a history that is too long is shortened. none: the prompt is refused; window: the history is "
            "cut; summary: also a summary of what was cut; recall: also a search of it for each question; hybrid: both."
        ),
    ] = "hybrid"
    high_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="Tokens of a history at which it is cut; 0: three quarters of what the window leaves.",
        ),
    ] = 0
    low_tokens: Annotated[
        int,
        Meta(
            ge=0, le=10**9, description="Tokens that a cut leaves of a history; 0: a quarter of what the window leaves."
        ),
    ] = 0
    max_tokens: Annotated[
        int,
        Meta(ge=0, le=10**9, description="Most tokens of a session's whole prompt; 0: the model's window."),
    ] = 0
    answer_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="Tokens left free for an answer whose request sets no limit; at most a quarter of the window.",
        ),
    ] = 4096
    summary_model: Annotated[
        str, Meta(description="Model of the fleet that writes summaries; empty: each session's own.")
    ] = ""
    summary_url: Annotated[
        str,
        Meta(
            description="Base URL of an OpenAI-compatible API that writes summaries instead of the fleet, such as "
            "https://HOST/v1."
        ),
    ] = ""
    summary_api_key: Annotated[str, Meta(description="API key for context.summary_url.", extra=SECRET)] = ""
    summary_api_key_file: Annotated[str, Meta(description="File that holds context.summary_api_key.")] = ""
    summary_tokens: Annotated[int, Meta(ge=16, le=100_000, description="Most tokens of the summary of one cut.")] = 400
    summary_timeout_s: Annotated[
        float,
        Meta(
            gt=0, le=3600, description="Seconds in which a summary must be written; after that another replica may try."
        ),
    ] = 60.0
    summary_retry_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Seconds until a failed summary is tried again; twice as long each time."),
    ] = 10.0
    summary_tokens_per_day: Annotated[
        int,
        Meta(
            ge=0,
            le=10**12,
            description="Most tokens per day, prompts and summaries together, that a tenant's summaries may use; 0: no "
            "limit.",
        ),
    ] = 0
    compactors: Annotated[int, Meta(ge=1, le=1000, description="Sessions that the compactor works on at once.")] = 4
    recall_index: Annotated[
        str,
        Meta(
            description="Where cut items are searched: sqlite, a file in sessions.state_dir that may be deleted and is made "
            "again; memory, also used for sqlite if the store is in memory or encrypted; "
            "postgresql://USER@HOST:PORT/DATABASE, which routers share; or none.",
            extra=SECRET,
        ),
    ] = "sqlite"
    recall_lifetime_s: Annotated[
        float,
        Meta(
            ge=0,
            le=10**9,
            description="Seconds that a session stays in the recall index after its last cut; 0: for ever. If the session "
            "is cut later, all of it is indexed again.",
        ),
    ] = 2_592_000.0
    embed_model: Annotated[
        str,
        Meta(
            description=f"Model whose embeddings add search by meaning to search by words: {BUNDLED_MODEL} of the extra "
            "recall-onnx, a model that context.embed_url serves, or a model of the fleet; empty: words alone."
        ),
    ] = ""
    embed_url: Annotated[
        str, Meta(description="URL of an OpenAI-compatible /embeddings; this router's own /v1/embeddings works.")
    ] = ""
    embed_dimensions: Annotated[
        int,
        Meta(
            ge=0,
            le=65_536,
            description=f"Dimensions of context.embed_model's vectors; required for all models but {BUNDLED_MODEL}.",
        ),
    ] = 0
    embed_api_key: Annotated[str, Meta(description="API key for context.embed_url.", extra=SECRET)] = ""
    embed_api_key_file: Annotated[str, Meta(description="File that holds context.embed_api_key.")] = ""
    recall_tokens: Annotated[
        int, Meta(ge=0, le=100_000, description="Most tokens of recalled items that are added to one question.")
    ] = 150
    recall_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=10,
            description="Seconds in which a search must answer; after that the question is sent without recalled items.",
        ),
    ] = 0.1
    max_recall_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 40,
            description="Most bytes of texts and vectors in SQLite's recall index, whose file takes up to twice that. "
            "Sessions that were not added to for longest are dropped first.",
        ),
    ] = 1 << 30

    @property
    def recall_in_postgres(self) -> bool:
        return self.recall_index.startswith(("postgresql://", "postgres://"))

"""The inference routes: one table, one line a route. A place that treats routes differently reads the difference here.

Each path is the same toward clients and toward workers, and is the metrics' label.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class BodyCodec(Enum):
    """How a request's body is written. The value is its Content-Type. JSON is the only codec that the router reads."""

    JSON = "application/json"


class PromptForm(Enum):
    """Where a body holds its prompt."""

    MESSAGES = 0
    """In ``messages`` and ``tools``, as OpenAI's chat completions have them."""
    ANTHROPIC = 1
    """In ``messages``, ``system`` and ``tools``, as Anthropic's messages have them."""
    TEXT = 2
    """In ``prompt``: a text, token ids, or several of either."""
    NONE = 3
    """Nowhere: each input is read once, so no prefix of it is worth keeping."""


class Api(Enum):
    """Whose conventions streams, errors and keys follow."""

    OPENAI = 0
    ANTHROPIC = 1


@dataclass(frozen=True, slots=True)
class RouteSpec:
    path: str
    title: str
    """In the OpenAPI document."""
    operation: str
    """``gen_ai.operation.name`` of its spans."""
    prompt: PromptForm = PromptForm.NONE
    streams: Api | None = None
    """The dialect of its streams; None: it never streams, and leaves ``stream`` in a body to the worker."""
    errors: Api = Api.OPENAI
    """The shape of its errors. Clients of Anthropic's routes also send their key as ``x-api-key``."""
    codec: BodyCodec = BodyCodec.JSON
    generates: bool = False
    """Workers write tokens for it, as many as the body or the model's window allows."""
    is_charged: bool = True
    """Its tokens count against the tenant's limits."""
    is_resumable: bool = False
    """Another worker can continue a stream that broke."""
    is_salted: bool = True
    """The tenant's cache salt goes into the body."""
    max_body_bytes: int | None = None
    """None: the largest that the settings allow any route."""


class Route(Enum):
    CHAT = RouteSpec(
        "/v1/chat/completions",
        "The next message of a conversation",
        "chat",
        PromptForm.MESSAGES,
        Api.OPENAI,
        generates=True,
        is_resumable=True,
    )
    COMPLETIONS = RouteSpec(
        "/v1/completions",
        "The continuation of a text",
        "text_completion",
        PromptForm.TEXT,
        Api.OPENAI,
        generates=True,
        is_resumable=True,
    )
    MESSAGES = RouteSpec(
        "/v1/messages",
        "The next message of a conversation, in Anthropic's shape",
        "chat",
        PromptForm.ANTHROPIC,
        Api.ANTHROPIC,
        Api.ANTHROPIC,
        generates=True,
    )
    COUNT_TOKENS = RouteSpec(
        "/v1/messages/count_tokens",
        "How many tokens a conversation has, in Anthropic's shape",
        "count_tokens",
        PromptForm.ANTHROPIC,
        errors=Api.ANTHROPIC,
        is_charged=False,
    )
    EMBEDDINGS = RouteSpec("/v1/embeddings", "Vectors of texts", "embeddings")
    RERANK = RouteSpec("/v1/rerank", "Documents ordered by how well they match a query", "rerank")
    SCORE = RouteSpec("/v1/score", "How alike texts are", "score")

    def __init__(self, spec: RouteSpec) -> None:
        self.spec = spec
        self.path = spec.path

    # Identity, not Enum's own hash of the name in Python code: routes key dictionaries on every request.
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Route.{self.name}"

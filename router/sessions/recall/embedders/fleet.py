"""Vectors from a model that the fleet serves. They are requested like a client's, with the same routing, retries and
admission, but count against no tenant's limits.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

import msgspec

from router.core.errors import RouterError
from router.core.request.routes import Route
from router.core.tenants.tenant import EVERYBODY, Caller, TenantRules
from router.proxy.internal_client import LOW_PRIORITY, InternalClient
from router.proxy.ports import Dispatch
from router.sessions.recall.embedders.replies import read_vectors
from router.sessions.recall.index import IndexUnavailable
from router.wire.requests import parse_apart

MAX_TEXT_CHARS = 2000
"""Longer texts are cut. A model that reads less is told to cut them itself."""
TIMEOUT_S = 5.0


class FleetEmbedder:
    """A single text is treated as a query of a search, and gets the usual priority."""

    def __init__(
        self,
        dispatch: Dispatch,
        clock: Callable[[], float],
        model: str,
        dimensions: int,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name = model
        self.dimensions = dimensions
        self._dispatch = dispatch
        self._clock = clock
        self._timeout_s = timeout_s

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Takes ``timeout_s`` at most, with the wait for a worker."""
        if not texts:
            return []
        rules = EVERYBODY if len(texts) == 1 else LOW_PRIORITY
        return read_vectors(await self._ask(self._body(texts), rules), len(texts), self.dimensions)

    def _body(self, texts: Sequence[str]) -> bytes:
        return msgspec.json.encode(
            {
                "model": self.name,
                "input": [text[:MAX_TEXT_CHARS] for text in texts],
                "encoding_format": "float",
                "truncate_prompt_tokens": -1,  # vLLM: at as many as the model reads
                "cache_salt": secrets.token_urlsafe(16),  # texts of all tenants: none may meet another's in a cache
            }
        )

    async def _ask(self, body: bytes, rules: TenantRules) -> bytes:
        client, caller = InternalClient(), Caller(rules=rules)
        request_id = f"embed_{secrets.token_hex(12)}"
        request = parse_apart(body, Route.EMBEDDINGS, {}, caller, request_id, resumes=False).of(body)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._dispatch.dispatch(request, client, self._clock(), rules)
        except TimeoutError:
            raise IndexUnavailable(f"the fleet made no vectors within {self._timeout_s} s") from None
        except RouterError as error:
            raise IndexUnavailable(f"the fleet made no vectors: {error.message}") from None
        if client.reply is None or client.reply.status != 200:
            status = client.reply.status if client.reply is not None else "nothing"
            raise IndexUnavailable(f"the fleet made no vectors: a worker answered {status}")
        return client.reply.body

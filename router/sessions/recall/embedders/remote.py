"""Vectors from a service with the OpenAI API. Texts of sessions are sent to it: that is the decision of the operator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import aiohttp
import msgspec

from router.runtime.bounded_body import read_body
from router.sessions.recall.embedders.replies import read_vectors
from router.sessions.recall.index import IndexUnavailable

MAX_REPLY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Service:
    """``url``: the whole URL to post to. ``api_key``: empty for none. ``max_text_chars``: longer texts are cut, since services
    refuse texts that their model cannot read whole."""

    url: str
    model: str
    dimensions: int
    api_key: str = ""
    timeout_s: float = 5.0
    max_connections: int = 4
    max_text_chars: int = 2000
    max_texts: int = 64
    """Texts of one request."""


class RemoteEmbedder:
    def __init__(self, service: Service, http: aiohttp.ClientSession) -> None:
        self.name = service.model
        self.dimensions = service.dimensions
        self._service = service
        self._http = http

    @classmethod
    async def open(cls, service: Service) -> Self:
        headers = {"Content-Type": "application/json"}
        if service.api_key:
            headers["Authorization"] = f"Bearer {service.api_key}"
        connector = aiohttp.TCPConnector(limit=service.max_connections)
        return cls(service, aiohttp.ClientSession(connector=connector, headers=headers))

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Each request takes ``timeout_s`` at most, with the wait for a connection."""
        vectors: list[Sequence[float]] = []
        for start in range(0, len(texts), self._service.max_texts):
            batch = [text[: self._service.max_text_chars] for text in texts[start : start + self._service.max_texts]]
            vectors += read_vectors(await self._ask(batch), len(batch), self.dimensions)
        return vectors

    async def close(self) -> None:
        await self._http.close()

    async def _ask(self, texts: Sequence[str]) -> bytes:
        service = self._service
        asked = msgspec.json.encode({"model": service.model, "input": texts, "encoding_format": "float"})
        try:
            async with (
                asyncio.timeout(service.timeout_s),
                self._http.post(service.url, data=asked, allow_redirects=False) as reply,
            ):
                if reply.status != 200:
                    raise IndexUnavailable(f"the embeddings service answered {reply.status}")
                body = await read_body(reply, MAX_REPLY_BYTES)
        except TimeoutError:
            raise IndexUnavailable(f"the embeddings service did not answer within {service.timeout_s} s") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise IndexUnavailable(f"the embeddings service cannot be asked: {type(error).__name__}") from error
        if body is None:
            raise IndexUnavailable(f"the embeddings service answered more than {MAX_REPLY_BYTES} bytes")
        return body

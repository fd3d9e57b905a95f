"""Vectors by a model that the fleet itself serves: the worker that is asked, and how, is the caller's business."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from router.recall.embedders.replies import read_vectors

Ask = Callable[[str, Sequence[str]], Awaitable[bytes]]
"""Model and texts → the body of a reply to ``/v1/embeddings``. Bounds its own time. Raises IndexUnavailable."""


class FleetEmbedder:
    def __init__(self, ask: Ask, model: str, dimensions: int, *, max_text_chars: int) -> None:
        """``max_text_chars``: what is longer is cut, for workers refuse what their model cannot read whole."""
        self.name = model
        self.dimensions = dimensions
        self._ask = ask
        self._max_text_chars = max_text_chars

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if not texts:
            return []
        body = await self._ask(self.name, [text[: self._max_text_chars] for text in texts])
        return read_vectors(body, len(texts), self.dimensions)

"""Reads the answer to ``/v1/embeddings`` of the OpenAI API. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt

import msgspec

from router.sessions.recall.index import IndexUnavailable


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Reply(msgspec.Struct):
    data: list[_Embedding]


_DECODER = msgspec.json.Decoder(_Reply)


def read_vectors(body: bytes, texts: int, dimensions: int) -> list[list[float]]:
    """A vector of unit length for each of ``texts`` texts, in their order. Raises IndexUnavailable."""
    try:
        found = sorted(_DECODER.decode(body).data, key=lambda embedding: embedding.index)
    except msgspec.DecodeError as error:
        raise IndexUnavailable(f"the embeddings cannot be read: {error}") from None
    if [embedding.index for embedding in found] != list(range(texts)):
        raise IndexUnavailable(f"the answer has {len(found)} embeddings with other indexes than the {texts} texts")
    return [_unit(embedding.embedding, dimensions) for embedding in found]


def _unit(vector: Sequence[float], dimensions: int) -> list[float]:
    if len(vector) != dimensions:
        raise IndexUnavailable(f"an embedding has {len(vector)} dimensions, where {dimensions} are configured")
    length = sqrt(sum(value * value for value in vector))
    if not length or not isfinite(length):
        raise IndexUnavailable("an embedding has no direction")
    return [value / length for value in vector]

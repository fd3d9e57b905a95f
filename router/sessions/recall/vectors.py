"""Vectors of meaning as bytes, and a search for the nearest. Pure, and exact: every vector is compared.

A block is bytes: for each vector the place of its text, a scale, and its numbers in steps of the scale, one byte each. This is
a quarter of the size of floats, and the search differs by rounding only. Blocks may be joined. Needs NumPy (the extra
``recall``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_STEP = 127
AT_ONCE = 256
"""Vectors multiplied together: few enough to stay in the cache of a processor."""


def layout(dimensions: int) -> np.dtype[np.void]:
    return np.dtype([("place", "<u4"), ("scale", "<f4"), ("steps", "i1", (dimensions,))])


def pack(places: Sequence[int], vectors: Sequence[Sequence[float]]) -> bytes:
    """A block of at least one vector. ``places``: below 2**32; ``vectors``: of unit length and equal dimensions."""
    exact = np.asarray(vectors, np.float32)
    block = np.zeros(len(places), layout(exact.shape[1]))
    block["place"] = places
    block["scale"] = np.abs(exact).max(axis=1) / MAX_STEP
    block["steps"] = np.rint(exact / block["scale"][:, None])
    packed: bytes = block.tobytes()
    return packed


def nearest(blocks: Sequence[bytes], query: Sequence[float], first: int, last: int, limit: int) -> list[int]:
    """The ``limit`` places from ``first`` to ``last`` whose vectors have the greatest cosine with the query, best first; among
    equals the last place first. Linear. Raises ValueError where the vectors have other dimensions than the query."""
    stored = np.frombuffer(b"".join(blocks), layout(len(query)))
    stored = stored[(stored["place"] >= first) & (stored["place"] <= last)]
    cosines = _products(stored["steps"], np.asarray(query, np.float32)) * stored["scale"]
    if len(cosines) > limit:
        best = np.argpartition(-cosines, limit)[:limit]
        stored, cosines = stored[best], cosines[best]
    order = np.lexsort((-stored["place"].astype(np.int64), -cosines))
    found: list[int] = stored["place"][order].tolist()
    return found


def _products(steps: npt.NDArray[np.int8], query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Without BLAS: its threads wait for each other, which takes longer than the work on a busy machine."""
    products = np.empty(len(steps), np.float32)
    for at in range(0, len(steps), AT_ONCE):
        part = steps[at : at + AT_ONCE].astype(np.float32)
        np.einsum("ij,j->i", part, query, out=products[at : at + AT_ONCE])
    return products

"""What an answer looks like, with everything taken away that may differ between two workers of different models.

A shape keeps names, types, the order of events, statuses and content types; it drops texts, ids, numbers, and fields
that are null, because a null says nothing that an absent field does not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby

import aiohttp

Shape = str | dict[str, "Shape"] | list["Shape"]
KEPT_VALUES = ("object", "finish_reason", "stop_reason", "role")
KEPT_ERROR_VALUES = ("type", "param", "code")


@dataclass(frozen=True, slots=True)
class AnswerShape:
    status: int
    content_type: str
    body: list[Shape]
    """Of a stream, one shape an event, those of equal neighbours told once; else the one body."""

    def lines(self) -> list[str]:
        """One line a leaf, so that two shapes can be compared by reading."""
        top = [f"status {self.status}", f"content type {self.content_type}"]
        return top + [line for place, part in enumerate(self.body) for line in sorted(_leaves(part, str(place)))]


async def ask(session: aiohttp.ClientSession, path: str, body: object) -> AnswerShape:
    async with session.post(path, json=body) as answer:
        content_type = answer.headers["Content-Type"]
        raw = await answer.read()
    if content_type.startswith("text/event-stream"):
        shapes = [event_shape(event) for event in raw.decode().split("\n\n") if event]
    else:
        shapes = [shape_of(json.loads(raw))]
    return AnswerShape(answer.status, content_type, [shape for shape, _ in groupby(shapes)])


def _leaves(shape: Shape, path: str) -> list[str]:
    if isinstance(shape, str) or not shape:
        return [f"{path}: {shape or 'empty'}"]
    parts = shape.items() if isinstance(shape, dict) else enumerate(shape)
    return [line for name, part in parts for line in _leaves(part, f"{path}.{name}")]


def event_shape(event: str) -> Shape:
    """``{"event": name, "data": shape}``; ``[DONE]`` as it is."""
    name = ""
    shape: Shape = ""
    for line in event.splitlines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            shape = value if value == "[DONE]" else shape_of(json.loads(value))
    return {"event": name, "data": shape}


def shape_of(value: object, kept: tuple[str, ...] = KEPT_VALUES) -> Shape:
    if isinstance(value, dict):
        return {key: _field_shape(key, field, kept) for key, field in value.items() if field is not None}
    if isinstance(value, list):
        shapes = [shape_of(item, kept) for item in value]
        return [shape for shape, _ in groupby(shapes)]
    return type(value).__name__


def _field_shape(key: str, field: object, kept: tuple[str, ...]) -> Shape:
    if key in kept and isinstance(field, str | int):
        return repr(field)
    return shape_of(field, KEPT_ERROR_VALUES if key == "error" else kept)

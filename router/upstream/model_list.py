"""Parses a worker's list of models, /v1/models."""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.fleet.member import ModelCard

MAX_MODELS = 1000
"""Models and adapters that one worker may list."""

MAX_NAME_CHARS, MAX_FIELD_BYTES = 256, 512

_NOTHING = msgspec.Raw()


class _Card(msgspec.Struct):
    """The members of a model's card that are kept. The others are skipped."""

    id: msgspec.Raw = _NOTHING
    object: msgspec.Raw = _NOTHING
    created: msgspec.Raw = _NOTHING
    owned_by: msgspec.Raw = _NOTHING
    root: msgspec.Raw = _NOTHING
    parent: msgspec.Raw = _NOTHING
    max_model_len: msgspec.Raw = _NOTHING


class _Models(msgspec.Struct):
    data: list[_Card]


_scalar = msgspec.json.Decoder(str | int | float | bool | None)


def read_models(body: bytes) -> dict[str, ModelCard]:
    """The models by name. A card without a valid name is left out, and so is a member that is too long or not a scalar. Raises
    msgspec.MsgspecError, RecursionError."""
    cards: dict[str, ModelCard] = {}
    for listed in msgspec.json.decode(body, type=_Models).data[:MAX_MODELS]:
        card = {
            name: value for name in _Card.__struct_fields__ if (value := _read(getattr(listed, name))) is not _NOTHING
        }
        name = card.get("id")
        if isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable():
            cards[name] = card
    return cards


def _read(raw: msgspec.Raw) -> Any:
    if not 0 < len(bytes(raw)) <= MAX_FIELD_BYTES:
        return _NOTHING
    try:
        return _scalar.decode(raw)
    except msgspec.MsgspecError:
        return _NOTHING

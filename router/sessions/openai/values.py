"""Reads members of a decoded body strictly. An InvalidRequest names the one that is wrong. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from router.core.errors import InvalidRequest

JsonObject = dict[str, Any]

MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
"""Bounds of metadata, as in the API."""


def refuse(message: str, param: str) -> NoReturn:
    raise InvalidRequest(message, param=param)


def read_text(value: object, param: str) -> str:
    if not isinstance(value, str):
        refuse(f"{param} must be a string", param)
    return value


def read_object(value: object, param: str) -> JsonObject:
    if not isinstance(value, dict):
        refuse(f"{param} must be an object", param)
    return value


def read_list(value: object, param: str) -> list[Any]:
    if not isinstance(value, list):
        refuse(f"{param} must be a list", param)
    return value


def read_flag(value: object, param: str) -> bool:
    if not isinstance(value, bool):
        refuse(f"{param} must be true or false", param)
    return value


def read_integer(value: object, param: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        refuse(f"{param} must be an integer from {least} to {most}", param)
    return value


def read_number(value: object, param: str, least: float, most: float) -> float:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        refuse(f"{param} must be a number from {least:g} to {most:g}", param)
    return value  # type: ignore[return-value]


def read_choice(value: object, param: str, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        refuse(f"{param} must be one of {', '.join(sorted(allowed))}", param)
    return value


def read_metadata(value: object, param: str = "metadata") -> dict[str, str]:
    """``value`` None: no pairs."""
    pairs = {} if value is None else read_object(value, param)
    if len(pairs) > MAX_PAIRS:
        refuse(f"{param} may have at most {MAX_PAIRS} pairs", param)
    for key, text in pairs.items():
        if len(key) > MAX_KEY_CHARS:
            refuse(f"a key of {param} may have at most {MAX_KEY_CHARS} characters", param)
        if not isinstance(text, str) or len(text) > MAX_VALUE_CHARS:
            refuse(f"a value of {param} must be a string of at most {MAX_VALUE_CHARS} characters", param)
    return pairs

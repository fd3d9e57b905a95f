"""Every setting as the reference shows it: key, type, bound, default, description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from router.config.schema import ANY_MODEL, MODELS, Config
from router.config.section import SECRET, Section
from router.config.sessions import ModelConfig

PREFIX = "WARMROUTE_"


class Setting(Struct, frozen=True):
    """One line of the reference."""

    key: str
    type: str
    default: Any
    bound: str
    description: str
    is_secret: bool

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace(".", "__").upper()


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every table in order."""
    for field in msgspec.structs.fields(Config):
        yield (f"{MODELS}.{ANY_MODEL}", ModelConfig) if field.name == MODELS else (field.name, field.type)


def settings() -> Iterator[Setting]:
    """Every key in order, for the reference."""
    for section, kind in sections():
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            base, meta = get_args(hints[field.name])
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            yield Setting(
                key=f"{section}.{field.name}",
                type=_type_name(base),
                default=default,
                bound=_bound(base, meta),
                description=meta.description,
                is_secret=meta.extra == SECRET,
            )


def _type_name(base: Any) -> str:
    if get_origin(base) is list:
        return f"list of {get_args(base)[0].__name__}"
    if get_origin(base) is tuple:
        element, _meta = get_args(get_args(base)[0])
        return f"list of {len(get_args(base))} {element.__name__}"
    return "one of" if get_origin(base) is Literal else str(base.__name__)


def _bound(base: Any, meta: Meta) -> str:
    if get_origin(base) is Literal:
        return ", ".join(get_args(base))
    if get_origin(base) is tuple:
        return f"each {_bound(*get_args(get_args(base)[0]))}"
    if meta.min_length:
        return "not empty"
    signs = (("≥", meta.ge), (">", meta.gt), ("≤", meta.le))
    return " ".join(f"{sign} {limit}" for sign, limit in signs if limit is not None)

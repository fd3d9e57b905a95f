"""The base of every section of the configuration."""

from __future__ import annotations

from msgspec import Struct

SECRET = {"secret": True}


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration. Unknown keys are errors."""

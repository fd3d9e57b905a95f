"""What every table of the configuration is."""

from __future__ import annotations

from msgspec import Struct

SECRET = {"secret": True}


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every table of the configuration is."""

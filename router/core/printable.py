"""Texts of others, made harmless to show."""

from __future__ import annotations


def printable(text: object) -> str:
    """As text that a terminal does not obey, and that is one line."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(text))

"""Texts from outside, made safe to show."""

from __future__ import annotations


def printable(text: object) -> str:
    """One line without control characters, which a terminal might obey."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(text))

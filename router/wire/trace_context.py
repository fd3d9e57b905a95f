"""Which trace headers of a client go on to a worker: W3C Trace Context (https://www.w3.org/TR/trace-context/). Pure.

A header that is not in order is left out. It is no reason to refuse a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?")
"""Versions after 00 may have more fields after the flags."""

_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ !-+\--<>-~]{0,255}[!-+\--<>-~]")
MAX_MEMBERS, MAX_STATE_CHARS = 32, 512
"""Limits of tracestate. The standard asks everybody to pass on at least 512 characters."""


def passed_on(headers: Mapping[str, str]) -> tuple[str, str]:
    """``traceparent`` and ``tracestate`` for a worker; empty where there is none. They become lines of a request."""
    parent = headers.get("traceparent", "")
    found = _PARENT.fullmatch(parent) if parent else None
    if found is None or (found[1] == "00" and found[2]):
        return "", ""
    state = headers.get("tracestate", "")
    return parent, state if state and _is_state(state) else ""


def _is_state(text: str) -> bool:
    members = [member.strip(" \t") for member in text.split(",")]
    is_short = len(text) <= MAX_STATE_CHARS and len(members) <= MAX_MEMBERS
    return is_short and text.isprintable() and all(not member or _MEMBER.fullmatch(member) for member in members)

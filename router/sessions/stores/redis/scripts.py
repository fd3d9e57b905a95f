"""The Lua scripts: one for each call of the store. Redis runs a script as a whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    text: bytes
    sha: bytes
    """Name of the script for Redis, once it has seen the text."""
    writes: bool


def _read(name: str, *, writes: bool) -> Script:
    folder = files("router.sessions.stores.redis") / "lua"
    text = b"\n".join((folder / f"{part}.lua").read_bytes() for part in ("session", name))
    # The name that Redis gives the script. It protects nothing.
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode(), writes)


BEGIN = _read("begin", writes=True)
APPEND = _read("append", writes=True)
RENEW = _read("renew", writes=True)
RELEASE = _read("release", writes=True)
LEAVE = _read("leave", writes=True)
LOAD = _read("load", writes=False)
CREATE = _read("create", writes=True)
SET_ATTRIBUTES = _read("set_attributes", writes=True)
COMMIT_VIEW = _read("commit_view", writes=True)
READ_TURN = _read("read_turn", writes=False)
DELETE = _read("delete", writes=True)
PUT_DOCUMENT = _read("put_document", writes=True)
GET_DOCUMENT = _read("get_document", writes=False)
DELETE_DOCUMENT = _read("delete_document", writes=True)
USAGE = _read("usage", writes=True)

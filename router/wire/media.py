"""Which images, sounds and films a prompt may name. A worker fetches URLs from inside our network, so only ``data:`` URIs and
listed hosts may pass. Pure; raises InvalidRequest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from router.core.errors import InvalidRequest

_URL_KEYS = frozenset({"image_url", "video_url", "audio_url", "input_audio", "file_url"})
"""Members that hold a URL, or an object with one. The key decides, since workers do not insist on the part's type."""

_PARTS_IN = ("messages", "input", "query", "queries", "documents", "text_1", "text_2", "data_1", "data_2")
"""Members of a body that may hold parts, on any route."""

_REMOTE = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[a-z0-9-]+(?:\.[a-z0-9-]+)*)(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?", re.IGNORECASE
)
"""Stricter than RFC 3986: no userinfo, backslash, space or control character, on which readers differ about the host."""


@dataclass(frozen=True, slots=True)
class MediaRule:
    """``hosts``: lower case names. A name that begins with a dot matches the hosts below it, and not itself."""

    hosts: frozenset[str] = frozenset()

    def allows(self, url: object) -> bool:
        if not isinstance(url, str):
            return False
        if url[:5].lower() == "data:":
            return True
        remote = _REMOTE.fullmatch(url) if self.hosts else None
        if remote is None:
            return False
        host = remote[1].lower()
        below = (host[at:] for at, each in enumerate(host) if each == ".")
        return host in self.hosts or any(each in self.hosts for each in below)


def check_messages(messages: Iterable[Any], rule: MediaRule) -> None:
    """Messages whose content is a text cost almost nothing."""
    for number, message in enumerate(messages):
        content = message.get("content") if type(message) is dict else None
        if type(content) is list:
            _check_parts(content, rule, f"messages[{number}].content")


def check_everywhere(value: object, rule: MediaRule, param: str | None = None) -> None:
    """For bodies whose inputs have many shapes: check everything that looks like a part, at any depth. Linear."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if type(each) is dict:
            _check_urls(each, rule, param)
            waiting.extend(each.values())
        elif type(each) is list:
            waiting.extend(child for child in each if type(child) in (dict, list))


def forbid_names(members: Mapping[str, Any]) -> None:
    """Refuse ``uuid``, which names a part's media in the workers' caches. No salt separates those: a tenant that names
    another's media would be served from them. Call it if tenants are kept apart and the body may hold a ``uuid``."""
    waiting = [(name, members[name]) for name in _PARTS_IN if name in members]
    while waiting:
        param, value = waiting.pop()
        if type(value) is list:
            waiting += [(param, each) for each in value]
        elif type(value) is dict:
            if value.get("uuid") is not None:
                raise InvalidRequest("uuid of a part is not for clients to set: tenants share media by it", param=param)
            waiting += [(param, value[name]) for name in ("content", "source") if name in value]


def _check_parts(parts: Iterable[Any], rule: MediaRule, param: str) -> None:
    for part in parts:
        if type(part) is not dict:
            continue
        _check_urls(part, rule, param)
        source = part.get("source")
        for nested in (part.get("content"), source.get("content") if type(source) is dict else None):
            if type(nested) is list:
                _check_parts(nested, rule, param)


def _check_urls(part: Mapping[str, Any], rule: MediaRule, param: str | None) -> None:
    for key, value in part.items():
        is_source = key == "source" and type(value) is dict
        if not is_source and key not in _URL_KEYS:
            continue
        url = value.get("url") if type(value) is dict else value
        if url is not None and not rule.allows(url):
            raise InvalidRequest(
                f"{key} must be a data: URI; this router lets workers fetch nothing from where it points", param=param
            )

"""Writes log lines: a constant message and separate fields, never a prompt, never a key.

Values are cut to a bound and escaped. Whatever looks like a key is replaced. Of an exception only its type and place are
logged, since its text may quote a client.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = ("time", "level", "logger", "message", "exception")

MAX_VALUE_LENGTH = 1024
MAX_ITEMS = 50
MAX_DEPTH = 3
MAX_FRAMES = 24
MAX_CAUSES = 4

AUDIT = "warmroute.audit"
AUDIT_READS = f"{AUDIT}.reads"
"""The part of the audit log that says what was read. On standard error ``log.level`` applies to it."""

ABOUT: ContextVar[tuple[str, str]] = ContextVar("about", default=("", ""))
"""Ids of the request that this task serves, and of its trace if that is sampled. They are fields of each line that the task
logs."""

_KEY = re.compile(r"(?<![A-Za-z0-9])(wr|sk)-[A-Za-z0-9_-]{8,}|\b(bearer)(\s+|%20)[^\s\"'\\,;]+", re.IGNORECASE)

_CREDENTIALS = re.compile(r"(://)[^\s'\"]{0,1000}@|(^|[\s'\"(=])[^\s'\"/@:]{0,100}:(?!//)[^\s'\"]{0,1000}@")
"""User and password of a URL, up to the last @, since a password may hold one that is not escaped. Also those of a value that
begins with them and has no scheme."""


def redact(text: str) -> str:
    """``text`` without anything that looks like a key (``wr-…``, ``sk-…``, and what follows ``Bearer``) and without user and
    password of URLs. Every message for people or machines passes through here."""
    if "@" in text:
        text = _CREDENTIALS.sub(lambda found: f"{found[1] or found[2]}***@", text)
    return _KEY.sub(lambda found: f"{found[1]}-***" if found[1] else f"{found[2]} ***", text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record.getMessage()),
        }
        for key, value in _fields(record).items():
            line[f"{key}_" if key in _RESERVED else key] = value
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _whereabouts(record.exc_info[1])
        return json.dumps(line, allow_nan=False)


class TextFormatter(logging.Formatter):
    """``time LEVEL logger: message key=value …``"""

    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record)
        fields = [f" {key}={value!r}" for key, value in _fields(record).items()]
        if record.exc_info and record.exc_info[1] is not None:
            fields += [f"\n  {line}" for line in _whereabouts(record.exc_info[1])]
        message = _text(record.getMessage())
        return f"{time} {record.levelname} {record.name}: {message}{''.join(fields)}"


def set_up_logging(level: str, style: str = "text", audit_file: str = "") -> None:
    """Set up all loggers. ``style`` is json or text. Raises OSError if the audit file cannot be written."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    handler.addFilter(lambda record: record.name != AUDIT_READS or record.levelno >= root.level)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    audit = logging.getLogger(AUDIT)
    audit.setLevel(logging.INFO)  # audit lines do not depend on log.level
    for old in audit.handlers:
        old.close()
    audit.handlers[:] = [_audit_handler(audit_file)] if audit_file else []


class _PrivateFile(logging.handlers.WatchedFileHandler):
    """Creates a file for its owner alone. A file that exists keeps its mode."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=_make_private)


def _make_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _audit_handler(file: str) -> logging.Handler:
    """The audit file's handler. It opens the file anew when that was moved away, so that it can be rotated."""
    handler = _PrivateFile(file, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    return handler


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {key: _plain(value, MAX_DEPTH) for key, value in vars(record).items() if key not in _STANDARD}
    request_id, trace_id = ABOUT.get()
    if request_id:
        fields.setdefault("request_id", request_id)
    if trace_id and fields.get("request_id") == request_id:
        fields.setdefault("trace_id", trace_id)
    return fields


def _plain(value: object, depth: int) -> Any:
    """A bounded value that JSON can represent."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value - value == 0.0:  # neither infinite nor a NaN
        return value
    if isinstance(value, Mapping) and depth:
        items = list(value.items())[:MAX_ITEMS]
        return {_text(str(key)): _plain(each, depth - 1) for key, each in items}
    if isinstance(value, list | tuple) and depth:
        return [_plain(each, depth - 1) for each in value[:MAX_ITEMS]]
    return _text(value if isinstance(value, str) else repr(value))


def _text(text: str) -> str:
    """Text that is cut, has no keys, and nothing that a terminal or a decoder fails on."""
    shown = redact(text[: 2 * MAX_VALUE_LENGTH])  # before the cut, since half a key does not look like one
    if len(shown) > MAX_VALUE_LENGTH:
        shown = shown[:MAX_VALUE_LENGTH] + "…"
    text = shown.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _whereabouts(error: BaseException) -> list[str]:
    """One line for each exception of the chain: its type and its frames, the last first."""
    lines: list[str] = []
    at: BaseException | None = error
    while at is not None and len(lines) < MAX_CAUSES:
        lines.append(" < ".join([type(at).__qualname__, *_frames(at.__traceback__)]))
        at = at.__cause__ or at.__context__
    return lines


def _frames(at: TracebackType | None) -> list[str]:
    frames = []
    while at is not None:
        code = at.tb_frame.f_code
        frames.append(f"{code.co_filename}:{at.tb_lineno} {code.co_name}")
        at = at.tb_next
    return frames[-MAX_FRAMES:][::-1]

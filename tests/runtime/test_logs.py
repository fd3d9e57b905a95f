"""Lines for people and for whoever collects them: a constant message, its fields apart, no keys and no prompts."""

from __future__ import annotations

import json
import logging
import stat
import sys
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from router.runtime.logs import (
    ABOUT,
    AUDIT,
    MAX_ITEMS,
    MAX_VALUE_LENGTH,
    JsonFormatter,
    TextFormatter,
    redact,
    set_up_logging,
)
from router.server.audit import Audit

KEY = "wr-" + "aB3_" * 10


@pytest.fixture(autouse=True)
def _restore_loggers() -> Iterator[None]:
    root, audit = logging.getLogger(), logging.getLogger(AUDIT)
    before = [(logger, logger.handlers[:], logger.level) for logger in (root, audit)]
    yield
    for handler in audit.handlers:
        handler.close()
    for logger, handlers, level in before:
        logger.handlers[:], logger.level = handlers, level


def record(message: str, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "warmroute", "created": 0.5, **fields})
    if error is not None:
        made.exc_info = (type(error), error, error.__traceback__)
    return made


def text(message: str, error: BaseException | None = None, **fields: object) -> str:
    return TextFormatter().format(record(message, error, **fields)).partition(" INFO ")[2]


def line(message: str, error: BaseException | None = None, **fields: object) -> dict[str, Any]:
    written = JsonFormatter().format(record(message, error, **fields))
    assert "\n" not in written
    found: dict[str, Any] = json.loads(written)
    return found


def test_a_json_line_has_time_level_logger_message_and_its_fields() -> None:
    assert line("worker joined", worker="w-1", times=3, ratio=0.5, on=True, none=None) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "warmroute",
        "message": "worker joined",
        "worker": "w-1",
        "times": 3,
        "ratio": 0.5,
        "on": True,
        "none": None,
    }


def test_no_field_takes_the_place_of_what_every_line_has() -> None:
    found = line("real", level="fatal", time="never")
    assert (found["level"], found["level_"], found["time_"]) == ("info", "fatal", "never")


def test_a_text_line_has_its_fields_behind_the_message() -> None:
    assert text("worker joined", worker="w-1", times=3) == "warmroute: worker joined worker='w-1' times=3"
    assert text("stopped") == "warmroute: stopped"


@pytest.mark.parametrize("form", [text, lambda *given, **fields: json.dumps(line(*given, **fields))])
@pytest.mark.parametrize("value", ["a\nERROR all is lost", "\x1b[2J", "\x00", "\u2028", "\u202e", "a\udcffb", "\x85"])
def test_no_value_can_end_its_line_or_reach_the_terminal(form: Any, value: str) -> None:
    for written in (form("m", value=value), form(value), form("m", value={value: [value]})):
        assert written.isprintable()
        written.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"\xff", [[[[[1]]]]]])
def test_what_json_does_not_know_is_told_in_words(value: object) -> None:
    assert line("m", value=value)["value"] is not None


def test_values_are_bounded_however_they_are_nested() -> None:
    long = "x " * MAX_VALUE_LENGTH
    found = line(long, value=long, values=[long] * 1000, table={str(i): long for i in range(1000)})
    assert len(found["message"]) == len(found["value"]) == MAX_VALUE_LENGTH + 1
    assert len(found["values"]) == len(found["table"]) == MAX_ITEMS


@pytest.mark.parametrize(
    "leak",
    [
        f"Authorization: Bearer {KEY}",
        "bearer abc.def+ghi/jkl==",
        f"?key={KEY}&x=1",
        "sk-ant-api03-abcdefghijkl",
        "http://ada:hunter2@10.0.0.1:8000/v1",
        "redis://:hunt/er@hunter2@redis:6379",
        "cannot reach ada:hunter2@host:80",
        f"('{KEY}',)",
        "x " * (MAX_VALUE_LENGTH // 2 - 6) + KEY,
    ],
)
def test_what_looks_like_a_key_is_struck_out_wherever_it_stands(leak: str) -> None:
    secrets = (KEY, KEY[:20], "abc.def", "api03", "hunter2")
    for written in (text(leak), text("m", value=leak), text("m", value={leak: [leak]}), json.dumps(line(leak, x=leak))):
        assert not any(secret in written for secret in secrets)
        assert "***" in written


@pytest.mark.parametrize(
    "harmless",
    [
        "disk-abcdefghijk",
        "w-0a1b2c3d",
        "wr-short",
        "the bearer",
        "task-force-one",
        "org/model:tag@7",
        "http://h:1/v1",
        "a@b",
    ],
)
def test_what_only_resembles_a_key_is_left(harmless: str) -> None:
    assert redact(harmless) == harmless


def test_of_an_exception_its_kind_and_place_are_told_and_not_its_words() -> None:
    def fail() -> None:
        try:
            raise KeyError("the prompt")  # noqa: TRY301
        except KeyError:
            raise RuntimeError("the prompt") from None

    with pytest.raises(RuntimeError) as raised:
        fail()
    outer, inner = line("unexpected error", raised.value)["exception"]
    assert outer.startswith("RuntimeError < ")
    assert inner.startswith("KeyError < ")
    assert "test_logs.py" in outer
    assert "prompt" not in outer + inner + text("unexpected error", raised.value)
    assert "RuntimeError < " in text("unexpected error", raised.value)


def test_a_line_says_which_request_and_trace_its_task_serves() -> None:
    def served() -> dict[str, Any]:
        ABOUT.set(("r1", "0af7"))
        return line("the session store failed", why="x")

    assert copy_context().run(served).items() >= {"request_id": "r1", "trace_id": "0af7", "why": "x"}.items()
    assert "request_id" not in line("serving")


def test_a_line_about_another_request_keeps_its_id_and_gets_no_trace_that_is_not_its_own() -> None:
    def served() -> dict[str, Any]:
        ABOUT.set(("r1", "0af7"))
        return line("request given up", request_id="notes_2")

    found = copy_context().run(served)
    assert found["request_id"] == "notes_2"
    assert "trace_id" not in found


def test_nothing_below_the_level_is_written_and_setting_up_twice_writes_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging("info")
    set_up_logging("warning", "json")
    log = logging.getLogger("warmroute.test")
    log.info("quiet")
    log.warning("loud", extra={"worker": "w-1"})
    sys.stderr.flush()
    (written,) = capsys.readouterr().err.splitlines()
    assert json.loads(written)["worker"] == "w-1"


def test_the_audit_log_is_written_at_any_level_and_to_its_file_as_well(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    set_up_logging("error", "text", str(file))
    logging.getLogger(AUDIT).info("keys loaded", extra={"keys": 3})
    logging.getLogger("warmroute").error("else")
    assert [json.loads(each)["keys"] for each in file.read_text("utf-8").splitlines()] == [3]
    assert "keys loaded keys=3" in capsys.readouterr().err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.rename(tmp_path / "rotated.jsonl")
    logging.getLogger(AUDIT).info("keys loaded", extra={"keys": 4})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(("level", "is_written"), [("info", True), ("warning", False)])
def test_the_level_holds_for_what_was_read_but_not_in_the_audit_file(
    level: str, is_written: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    set_up_logging(level, "text", str(file))
    audit = Audit(logging.getLogger(AUDIT))
    audit.count("admin call", "10.0.0.1", is_read=True, page="/workers", status=200)
    audit.count("admin call", "10.0.0.1", page="/workers", status=401)
    audit.flush()
    assert [json.loads(each)["status"] for each in file.read_text("utf-8").splitlines()] == [200, 401]
    written = capsys.readouterr().err
    assert ("status=200" in written) is is_written
    assert "status=401" in written


def test_an_audit_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        set_up_logging("info", "json", str(tmp_path / "absent" / "audit.jsonl"))

"""Lines for people and for whoever collects them: a constant message, its fields apart."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from router.logs import FieldFormatter, set_up_logging


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def line(message: str, error: BaseException | None = None, **fields: object) -> str:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "warmroute", **fields})
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    return FieldFormatter("%(levelname)s %(name)s: %(message)s").format(record)


def test_fields_stand_behind_the_message() -> None:
    assert line("worker joined", worker="w-1", times=3) == "INFO warmroute: worker joined worker='w-1' times=3"


def test_a_message_without_fields_is_left_alone() -> None:
    assert line("stopped") == "INFO warmroute: stopped"


def test_no_field_can_make_a_line_of_its_own() -> None:
    assert "\n" not in line("worker joined", url="http://a\nERROR warmroute: all is lost\x1b[2J")
    assert "\x1b" not in line("worker joined", url="\x1b[2J")


def test_fields_stand_on_the_first_line_and_the_traceback_behind_it() -> None:
    first, *rest = line("unexpected error", RuntimeError("broken"), request_id="r-1").splitlines()
    assert first == "INFO warmroute: unexpected error request_id='r-1'"
    assert rest == ["RuntimeError: broken"]


def test_nothing_below_the_level_is_written_and_setting_up_twice_writes_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging("info")
    set_up_logging("warning")
    log = logging.getLogger("warmroute.test")
    log.info("quiet")
    log.warning("loud", extra={"worker": "w-1"})
    sys.stderr.flush()
    written = capsys.readouterr().err.splitlines()
    assert len(written) == 1
    assert written[0].endswith("WARNING warmroute.test: loud worker='w-1'")

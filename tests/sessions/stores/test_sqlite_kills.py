"""Processes that share a file are killed: acknowledged writes are there, and every turn is whole or absent."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from router.sessions.stores.contract import EMPTY, TurnRecord
from router.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.contract import OWNER
from tests.sessions.stores.sqlite_child import SIDS

pytestmark = pytest.mark.system
KILLS = 20


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.sessions.stores.sqlite_child", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(child: subprocess.Popen[str]) -> list[str]:
    """What it still said."""
    child.kill()
    said, _ = child.communicate(timeout=20)
    return said.splitlines(keepends=True)


def kill_in_turn(path: Path, chance: random.Random) -> set[tuple[str, int]]:
    """Of two that work at once one is killed, and replaced, again and again. Session and turn of what they acknowledged."""
    children = [start(path), start(path)]
    lines = []
    for _ in range(KILLS):
        place = chance.randrange(2)
        stdout = children[place].stdout
        assert stdout is not None
        lines += [stdout.readline() for _ in range(chance.randrange(1, 60))]
        time.sleep(chance.random() * 0.01)  # so that it is not always killed right behind a turn
        lines += kill(children[place])
        children[place] = start(path)
    for child in children:
        lines += kill(child)
    # The last line of a child may be torn, and the first that is read behind its death, since what is buffered here is lost.
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return {(pair[0], int(pair[1])) for pair in pairs if len(pair) == 2 and pair[0] in SIDS}


async def test_what_was_acknowledged_is_there_whole_after_twenty_kills(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    acknowledged = kill_in_turn(path, random.Random(1))
    assert len(acknowledged) > KILLS
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store = await SqliteStore.open(path, time.monotonic, time.time)
    for sid in SIDS:
        loaded = await store.load(sid, OWNER, EMPTY)
        assert loaded is not None
        expected = []
        for turn in range(1, loaded.turns + 1):
            record = await store.read_turn(sid, OWNER, turn)
            assert record is not None
            whole = [b"%d asked" % turn, b"%d answered" % turn, b"%d done" % turn]
            if record.has_ended:
                assert record == TurnRecord(True, b"%d" % turn)
                expected += whole
            else:
                assert (sid, turn) not in acknowledged
                expected += [each for each in whole[:1] if each in loaded.tail]
        assert list(loaded.tail) == expected
    await store.close()

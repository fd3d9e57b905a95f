"""What is shown, and that nothing from outside rules the terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

from router.cli.terminal.screen import RECENT_SAMPLES, recent_hits, top_screen, worker_table
from tests.cli.terminal.shown import a_decision, a_snapshot, a_worker


def printed(what: RenderableType, **settings: Any) -> str:
    sink = StringIO()
    Console(file=sink, width=200, highlight=False, **settings).print(what)
    return sink.getvalue()


def test_a_screen_says_how_the_fleet_is() -> None:
    text = printed(top_screen(a_snapshot()))
    assert "1 of 1 workers up · 3 live · 2 waiting · hits 80.0 % in five minutes · 1,234 GPU seconds saved" in text
    assert "7 turns, store up" in text
    worker, decision = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("w-1", "r-1"))
    assert worker.split() == ["w-1", "up", "0", "0", "25.0", "%", "25.0", "%", "10,000", "http://w-1:8000"]
    assert decision.split() == ["r-1", "sim", "w-1", "cached", "200", "1,000", "960", "976", "52", "ms"]


def test_a_whole_answer_is_not_shown_as_a_first_token() -> None:
    assert "52 ms" not in printed(top_screen(a_snapshot(decisions=[a_decision(stream=False)])))


def test_a_router_without_sessions_or_a_past_is_shown() -> None:
    text = printed(top_screen(a_snapshot(sessions=None, history=[], workers=[], decisions=[])))
    assert "0 of 0 workers up" in text
    assert "turns" not in text
    assert "hits - in" in text


def test_a_store_that_is_away_is_said() -> None:
    sessions = {"turns": 7, "cached": 1, "store_up": False, "waiting": 4}
    assert "store AWAY" in printed(top_screen(a_snapshot(sessions=sessions)))


def test_workers_that_are_ill_come_first_and_then_the_busiest() -> None:
    workers = [a_worker("w-a"), a_worker("w-b", in_flight=5), a_worker("w-c", state="ejected")]
    lines = printed(worker_table(workers)).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["w-c", "w-b", "w-a"]


def test_a_low_terminal_shows_some_and_says_how_many_are_left() -> None:
    workers = [a_worker(f"w-{at:03}") for at in range(200)]
    text = printed(top_screen(a_snapshot(workers=workers), height=40))
    assert "and 177 more" in text
    assert len(text.splitlines()) <= 40


def test_what_clients_write_does_not_rule_the_terminal() -> None:
    hostile = "\x1b[2J[bold]\rx\x9b31m"
    text = printed(top_screen(a_snapshot(decisions=[a_decision(model=hostile)])))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "[bold]" in text


def test_hits_are_those_of_five_minutes_and_not_of_all_time() -> None:
    long_ago = [[float(at), 0.0, 0.0, 0.0] for at in range(100)]
    recent = [[100.0 + at, 1000.0 + 10 * at, 0.0, 500.0 + at] for at in range(RECENT_SAMPLES)]
    assert recent_hits(long_ago + recent) == "10.0 %"
    assert recent_hits(long_ago) == "-"


def test_no_colour_is_printed_where_none_is_wanted() -> None:
    table = worker_table([a_worker("w-1")])
    assert "\x1b[" in printed(table, force_terminal=True)
    assert "\x1b[32m" not in printed(table, force_terminal=True, no_color=True)


def test_what_is_wrong_with_a_worker_is_said_and_since_when() -> None:
    error = "GET /health: cannot connect: Connection refused\x1b[2J"
    ill = a_worker("w-2", state="starting", since="2023-11-14T22:13:20+00:00", last_error=error)
    text = printed(
        top_screen(a_snapshot(workers=[a_worker("w-1", since="2023-11-14T22:13:20+00:00", last_error=None), ill]))
    )
    (line,) = (line for line in text.splitlines() if "refused" in line)
    assert line.split()[:3] == ["w-2", "starting", "2023-11-14T22:13:20+00:00"]
    assert "\x1b" not in line
    assert "last error" not in printed(top_screen(a_snapshot()))


def test_a_low_terminal_shows_some_errors_and_says_how_many_are_left() -> None:
    workers = [a_worker(f"w-{at:03}", state="starting", last_error="GET /health: gone") for at in range(200)]
    text = printed(top_screen(a_snapshot(workers=workers), height=40))
    assert "and 196 more" in text
    assert len(text.splitlines()) <= 40

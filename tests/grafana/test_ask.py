"""Asking a Prometheus for every panel's data, as whoever sees an empty one does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from grafana.ask import DASHBOARDS, filled_in, main, panels


@contextmanager
def a_prometheus(values: dict[str, str], status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """``values``: a word of the query → what its only series says; no series for other queries. Yields its URL and what was
    asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            asked.append(query)
            found = [{"metric": {}, "value": [0, value]} for word, value in values.items() if word in query]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"result": found}}).encode())

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["ask", *words])
    return main()


def test_panels_without_data_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with a_prometheus({"index_blocks": "0.5", "saved_prefill": "NaN"}) as (url, asked):
        assert run(monkeypatch, url + "/") == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == ["cache", "fleet", "latency", "state", "tenants"]
    assert told[0].startswith("cache: 1 of 14 panels have data; nothing yet in: Hit ratio, ")
    assert "GPU seconds saved" in told[0], "not a number is no data"
    assert "Index fill" not in told[0]
    written = [expr for one in sorted(DASHBOARDS.glob("*.json")) for panel in panels(one) for expr in panel.queries]
    assert {filled_in(expr) for expr in written} == set(asked)


def test_a_query_that_prometheus_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_prometheus({}, status=400) as (url, _):
        assert run(monkeypatch, url) == 1
    assert "warmroute_" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "status"), [((), 2), (("file:///etc/passwd",), 2), (("http://127.0.0.1:1",), 1)])
def test_what_is_no_prometheus_is_an_error(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], status: int
) -> None:
    assert run(monkeypatch, *words) == status


def test_a_variable_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="not known"):
        filled_in("up{a='$new'}")

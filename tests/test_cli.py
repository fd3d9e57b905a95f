"""The commands as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli import cli


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), env={})


def test_serve_refuses_to_serve_everybody_unless_told_to() -> None:
    result = run("serve", "--worker", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "server.insecure_no_auth=False" in result.output
    assert "--insecure-no-auth" in result.output


def test_serve_refuses_to_start_without_workers() -> None:
    result = run("serve", "--insecure-no-auth")
    assert result.exit_code == 1
    assert "no worker is named" in result.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--port", "70000"), "server.port=70000: must be int ≥ 0 ≤ 65535"),
        (("--policy", "best"), "policy.name='best': must be one of"),
        (("--worker", "gpu"), "worker URL 'gpu' must begin with http:// or https://"),
        (("--simulate", "65"), "fleet.simulate=65: must be int ≥ 0 ≤ 64"),
    ],
)
def test_serve_says_in_one_line_what_is_wrong(words: tuple[str, ...], line: str) -> None:
    result = run("serve", "--insecure-no-auth", *words)
    assert result.exit_code == 1
    assert line in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_check_config_prints_what_holds_but_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "warmroute.toml"
    file.write_text("[fleet]\nworker_key = 'hush-hush'\n[policy]\nname = 'prefix_ring'\n", "utf-8")
    result = run("check-config", str(file))
    assert result.exit_code == 0
    assert '"name": "prefix_ring"' in result.output
    assert "hush-hush" not in result.output


def test_check_config_fails_on_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "warmroute.toml"
    file.write_text("[server]\nport = -1\n", "utf-8")
    result = run("check-config", str(file))
    assert result.exit_code == 1
    assert "server.port=-1: must be int ≥ 0 ≤ 65535" in result.output


def test_simulate_names_the_bound_it_broke() -> None:
    result = run("simulate", "--time-scale", "0")
    assert result.exit_code == 1
    assert "time_scale" in result.output


def test_replay_says_that_the_trace_is_missing(tmp_path: Path) -> None:
    result = run("replay", str(tmp_path / "absent.jsonl"))
    assert result.exit_code == 1
    assert "absent.jsonl" in result.output


def test_the_version_is_told() -> None:
    assert "version" in run("--version").output

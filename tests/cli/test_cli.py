"""The commands as people type them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli


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
        (("--context-strategy", "best"), "context.strategy='best': must be one of"),
        (("--context-high-tokens", "-1"), "context.high_tokens=-1: must be int ≥ 0"),
        (("--context-low-tokens", "-1"), "context.low_tokens=-1: must be int ≥ 0"),
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


def test_check_config_hides_secrets_of_the_environment_too(tmp_path: Path) -> None:
    file = tmp_path / "warmroute.toml"
    file.write_text("", "utf-8")
    environment = {"WARMROUTE_ADMIN__TOKEN": "hush-hush", "WARMROUTE_SERVER__PORT": "9"}
    result = CliRunner().invoke(cli, ["check-config", str(file)], env=environment)
    shown = json.loads(result.output)
    assert (shown["admin"]["token"], shown["fleet"]["worker_key"], shown["server"]["port"]) == ("***", "", 9)


@pytest.mark.parametrize(("flag", "setting"), [("--port", "server.port"), ("--admin-port", "admin.port")])
def test_serve_says_which_port_is_taken_and_by_which_setting(flag: str, setting: str) -> None:
    other = "--admin-port" if flag == "--port" else "--port"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ("--worker", "http://127.0.0.1:1", "--session-store", "memory://", flag, port, other, "0")
        result = run("serve", "--insecure-no-auth", *words)
    assert result.exit_code == 1
    assert (
        f"Error: {setting}={port}: cannot listen on port {port} of 127.0.0.1: Address already in use\n" in result.output
    )
    assert "Traceback" not in result.output


def test_serve_says_by_which_setting_it_has_an_address_that_is_not_this_machines() -> None:
    words = (
        "--worker",
        "http://127.0.0.1:1",
        "--session-store",
        "memory://",
        "--host",
        "192.0.2.1",
        "--admin-port",
        "0",
    )
    result = run("serve", "--insecure-no-auth", *words)
    assert result.exit_code == 1
    assert "Error: server.host='192.0.2.1': cannot listen on port 8080 of 192.0.2.1: " in result.output


PASSWORDS = {
    "fleet.workers": "http://ada:hunter2@10.0.0.1:8000",
    "fleet.workers_dns": "ada:hunter2@vllm:8000",
    "fleet.workers_kubernetes": "ada:hunter2@models/vllm",
    "context.summary_url": "https://ada:hunter2@notes.example/v1",
    "context.embed_url": "https://ada:hunt/er@hunter2@embed.example/v1",
    "limits.allowed_media_domains": "ada:hunter2@media.example",
    "server.tls_cert": "file://ada:hunter2@certs/tls.crt",
    "tokens.tokenizer": "http://ada:hunter2@models.example/t",
    "sessions.store": "ftp://ada:hunter2@store",
    "context.recall_index": "mysql://ada:hunter2@recall",
    "tracing.endpoint": "http://ada:hunter2@traces/v1/traces",
    "log.audit_file": "ada:hunter2@audit",
}


@pytest.mark.parametrize(("key", "value"), PASSWORDS.items())
def test_no_command_shows_a_password_that_stands_in_a_url(key: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "warmroute.toml"
    section, name = key.split(".")
    shown = f"['{value}']" if name in ("workers", "allowed_media_domains") else f"'{value}'"
    file.write_text(f"[{section}]\n{name} = {shown}\n", "utf-8")
    for result in (run("check-config", str(file)), run("workers", "--config", str(file), "--admin-url", value)):
        assert "hunter2" not in result.output
        assert "Traceback" not in result.output
    file.write_text(f"{section} = {shown}\n", "utf-8")
    assert "hunter2" not in run("check-config", str(file)).output


def test_a_load_that_cannot_be_sent_shows_no_password(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 8, "output_length": 1, "hash_ids": [1]}\n', "utf-8")
    result = run("replay", str(trace), "--url", "http://ada:hunter2@127.0.0.1:1")
    assert result.exit_code == 1
    assert "hunter2" not in result.output


def test_check_config_fails_on_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "warmroute.toml"
    file.write_text("[server]\nport = -1\n", "utf-8")
    result = run("check-config", str(file))
    assert result.exit_code == 1
    assert "server.port=-1: must be int ≥ 0 ≤ 65535" in result.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--time-scale", "0"), "time_scale must be above 0, not 0.0"),
        (("--prefill-rate", "nan"), "prefill_rate must be above 0, not nan"),
        (("--workers", "0"), "workers must be at least 1, not 0"),
        (("--base-port", "65530"), "base_port must be 0 or leave a port for each, not 65530"),
        (("--model", "a", "--model", "a"), "models, adapters must be names that differ"),
    ],
)
def test_simulate_names_the_bound_it_broke(words: tuple[str, ...], line: str) -> None:
    result = run("simulate", *words)
    assert result.exit_code == 1
    assert line in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_replay_says_that_the_trace_is_missing(tmp_path: Path) -> None:
    result = run("replay", str(tmp_path / "absent.jsonl"))
    assert result.exit_code == 1
    assert "absent.jsonl" in result.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--speed", "0"), "speed must be above 0, not 0.0"),
        (("--time-scale", "-1"), "time_scale must be above 0, not -1.0"),
        (("--limit", "0"), "limit must be at least 1, not 0"),
        (("--block-tokens", "1"), "block_tokens must be at least"),
    ],
)
def test_replay_names_the_bound_it_broke(words: tuple[str, ...], line: str) -> None:
    result = run("replay", "trace.jsonl", *words)
    assert result.exit_code == 1
    assert line in result.output


def test_replay_names_the_line_that_is_no_request(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 0, "output_length": 1}\n', "utf-8")
    result = run("replay", str(trace))
    assert result.exit_code == 1
    assert "t.jsonl:1: " in result.output


def test_the_version_is_told() -> None:
    told = subprocess.run([sys.executable, "-m", "router", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.strip().endswith(version("warmroute"))


def test_every_command_explains_itself() -> None:
    for name in cli.commands:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert str(cli.commands[name].help).splitlines()[0].split()[0] in result.output


def test_keys_and_serving_everybody_exclude_each_other() -> None:
    environment = {"WARMROUTE_AUTH__KEYS": "acme:" + "0a" * 32, "WARMROUTE_AUTH__SALT_SECRET": "x" * 16}
    result = CliRunner().invoke(cli, ["serve", "--insecure-no-auth", "--worker", "http://127.0.0.1:1"], env=environment)
    assert result.exit_code == 1
    assert "server.insecure_no_auth=True: must not be given together with auth.keys_file" in result.output


@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_a_file_of_keys_that_is_wrong_ends_the_start_with_one_line(tmp_path: Path, command: str) -> None:
    keys, file = tmp_path / "keys.toml", tmp_path / "warmroute.toml"
    keys.write_text("[tenants.acme]\nshare = 0\n", "utf-8")
    auth = f"[auth]\nkeys_file = '{keys}'\nsalt_secret = 'sixteen bytes or more'\n"
    file.write_text(f"{auth}[server]\nport = 0\n[admin]\nport = 0\n[fleet]\nworkers = ['http://127.0.0.1:1']", "utf-8")
    result = run(command, *(["--config"] if command == "serve" else []), str(file))
    assert result.exit_code == 1
    assert f"auth.keys_file='{keys}': tenants.acme.share: Expected `float` > 0" in result.output
    assert "Traceback" not in result.output


def test_an_audit_file_that_cannot_be_written_ends_the_start() -> None:
    environment = {"WARMROUTE_LOG__AUDIT_FILE": "/absent/audit.jsonl"}
    result = CliRunner().invoke(cli, ["serve", "--insecure-no-auth", "--worker", "http://127.0.0.1:1"], env=environment)
    assert result.exit_code == 1
    assert "log.audit_file='/absent/audit.jsonl': cannot be written: No such file" in result.output

"""The commands. Each turns its flags into settings, runs one thing, and reports an error in one line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import uvloop
from rich.console import Console

from router.app.serve import Running, running, serve
from router.cli.demo import DemoSettings, demo
from router.cli.keys import keys
from router.cli.terminal.commands import explain_command, top_command, workers_command
from router.config.loading import load_config
from router.config.reference import settings
from router.config.schema import Config, ConfigError
from router.config.serving import LogConfig
from router.replay import ReplayError, ReplaySettings, replay
from router.runtime.logs import redact, set_up_logging
from router.server.key_file import load_keys
from router.simulator import SimulatorSettings, start_fleet

T = TypeVar("T")

_NO_AUTH = (
    "server.insecure_no_auth=False: no API keys are named, so the router would serve everybody: give auth.keys_file "
    "or auth.keys, or say --insecure-no-auth if that is what you want"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warmroute")
def cli() -> None:
    """A KV-cache-aware inference router for fleets of vLLM workers."""


@cli.command("serve")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file.")
@click.option("--host", help="Address of the port for clients.")
@click.option("--port", type=int, help="Port for clients.")
@click.option("--admin-host", help="Address of the admin port.")
@click.option("--admin-port", type=int, help="Admin port.")
@click.option("--worker", "workers", multiple=True, help="URL of a worker; repeatable.")
@click.option("--workers-file", help="File with one worker URL per line.")
@click.option("--workers-dns", help="NAME:PORT; every address that it resolves to is a worker.")
@click.option("--workers-kubernetes", help="NAMESPACE/SERVICE[:PORT] whose pods are the workers.")
@click.option("--policy", help="How workers are ranked.")
@click.option("--session-store", help="Where sessions are stored: sqlite:///PATH, redis://…, none.")
@click.option("--state-dir", help="Directory for the router's own files.")
@click.option("--context-strategy", help="How a history that is too long is shortened.")
@click.option("--context-high-tokens", type=int, help="Tokens above which a history is cut.")
@click.option("--context-low-tokens", type=int, help="Tokens that a cut leaves of a history.")
@click.option("--simulate", type=int, help="Simulated workers to start inside this process.")
@click.option(
    "--insecure-no-auth", is_flag=True, default=None, help="Serve everybody who reaches the port, without API keys."
)
def serve_command(file: Path | None, workers: Sequence[str], **flags: Any) -> None:
    """Run the router."""
    config = _load(
        file,
        {
            "server.host": flags["host"],
            "server.port": flags["port"],
            "server.insecure_no_auth": flags["insecure_no_auth"],
            "admin.host": flags["admin_host"],
            "admin.port": flags["admin_port"],
            "fleet.workers": list(workers) or None,
            "fleet.workers_file": flags["workers_file"],
            "fleet.workers_dns": flags["workers_dns"],
            "fleet.workers_kubernetes": flags["workers_kubernetes"],
            "fleet.simulate": flags["simulate"],
            "policy.name": flags["policy"],
            "sessions.store": flags["session_store"],
            "sessions.state_dir": flags["state_dir"],
            "context.strategy": flags["context_strategy"],
            "context.high_tokens": flags["context_high_tokens"],
            "context.low_tokens": flags["context_low_tokens"],
        },
    )
    if not (config.server.insecure_no_auth or config.auth.asks_for_keys):
        raise click.ClickException(_NO_AUTH)
    fleet = config.fleet
    if not (fleet.workers or fleet.workers_file or fleet.workers_dns or fleet.workers_kubernetes or fleet.simulate):
        raise click.ClickException(
            "fleet.workers=[]: no worker is named: give --worker, --workers-file, --workers-dns or --workers-kubernetes"
        )
    _set_up_logging(config.log)
    _run(_serve(config))


async def _serve(config: Config) -> None:
    if not config.fleet.simulate:
        await serve(config)
        return
    async with await start_fleet(SimulatorSettings(workers=config.fleet.simulate, base_port=0, time_scale=1)) as fleet:
        await serve(with_workers(config, [*config.fleet.workers, *fleet.urls]), _print_curl)


def _print_curl(router: Running) -> None:
    click.echo(
        "Simulated workers are ready. Try:\n\n"
        f"  curl -N {router.url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"model": "sim", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'\n\n"""
        f"What the router thinks of it: curl {router.admin_url}/decisions"
    )


@cli.command("simulate")
@click.option("--workers", default=8, show_default=True, help="Workers; each has a port of its own.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the workers listen on.")
@click.option("--base-port", default=9500, show_default=True, help="Port of the first worker; 0 takes free ports.")
@click.option("--cache-blocks", default=3000, show_default=True, help="KV blocks of each worker.")
@click.option("--block-tokens", default=512, show_default=True, help="Tokens in a KV block.")
@click.option("--prefill-rate", default=15000.0, show_default=True, help="Prefill rate, in uncached tokens per second.")
@click.option("--itl-ms", default=30.0, show_default=True, help="Milliseconds between two tokens of a stream.")
@click.option(
    "--max-num-seqs", default=64, show_default=True, help="Requests that a worker runs at once; further ones wait."
)
@click.option(
    "--time-scale", default=20.0, show_default=True, help="How many times faster than real time the workers run."
)
@click.option(
    "--answers",
    type=click.Choice(["plain", "bytes"]),
    default="plain",
    show_default=True,
    help="Words, or text whose characters are split over tokens.",
)
@click.option("--tokens-per-event", default=1, show_default=True, help="Tokens in an event, unless an interval is set.")
@click.option(
    "--stream-interval-ms",
    default=25.0,
    show_default=True,
    help="Milliseconds whose tokens share an event of a stream; 0: off.",
)
@click.option("--vocabulary", default="", help="File with the token ids that fleets in several processes share.")
@click.option("--poison", default="", help="Text in a request that crashes the worker; empty: none.")
@click.option("--model", "models", multiple=True, default=("sim",), show_default=True, help="Model name; repeatable.")
def simulate_command(host: str, **options: Any) -> None:
    """Run simulated workers that behave as vLLM does."""
    set_up_logging("info")
    try:
        fleet = SimulatorSettings(**options)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    _run(_simulate(fleet, host))


async def _simulate(fleet_settings: SimulatorSettings, host: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await start_fleet(fleet_settings, host=host) as fleet:
        for url in fleet.urls:
            click.echo(url)
        await stop.wait()


@cli.command("replay")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--url", "urls", multiple=True, default=("http://127.0.0.1:8080",), show_default=True, help="Router; repeatable."
)
@click.option("--speed", default=2.0, show_default=True, help="Trace seconds per second of the workers' time.")
@click.option("--time-scale", default=20.0, show_default=True, help="The workers' time scale; 1 for real workers.")
@click.option("--limit", type=int, help="Only the first N requests.")
@click.option("--model", help="Model to ask for.  [default: the first listed]")
@click.option("--block-tokens", default=512, show_default=True, help="Tokens that one hash id of the trace stands for.")
@click.option("--workers-url", "worker_urls", multiple=True, help="Worker whose counters the report reads; repeatable.")
@click.option(
    "--admin-url", default="http://127.0.0.1:8081", show_default=True, help="Admin port that names the workers."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the choice among several routers.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to which the report is also written.")
def replay_command(json_file: Path | None, **options: Any) -> None:
    """Send the requests of a trace at its times, and report cache hits and latencies."""
    try:
        report = _run(replay(ReplaySettings(**options)))
        Console().print(report.as_table())
        if json_file is not None:
            json_file.write_text(json.dumps(report.as_dict(), indent=1) + "\n", "utf-8")
    except (ReplayError, ValueError, OSError) as error:
        raise click.ClickException(redact(str(error))) from None


@cli.command("demo")
def demo_command() -> None:
    """Compare round_robin with cache_aware on simulated workers, in under a minute."""
    set_up_logging("warning")
    _run(demo(DemoSettings(), _demo_router, Console()))


@asynccontextmanager
async def _demo_router(policy: str, worker_urls: Sequence[str]) -> AsyncIterator[str]:
    flags = {
        "server.port": 0,
        "admin.port": 0,
        "policy.name": policy,
        "policy.alone": True,
        "load.poll_interval_s": 0.1,
        "fleet.workers": list(worker_urls),
        "admission.max_worker_requests": 0,  # a policy that overloads its workers shall be seen to
    }
    async with running(load_config(None, {}, flags)) as router:
        while not router.fleet.catalog.is_ready():  # the first probes take a few milliseconds
            await asyncio.sleep(0.01)
        yield router.url


@cli.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config_command(file: Path) -> None:
    """Check a configuration file together with the environment, and print the resulting settings."""
    config = _load(file, {})
    try:
        load_keys(config.auth)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    shown = msgspec.to_builtins(config)
    for section, key in (setting.key.split(".") for setting in settings() if setting.is_secret):
        shown[section][key] = "***" if shown[section][key] else ""
    click.echo(json.dumps(_without_passwords(shown), indent=2))


def _without_passwords(shown: Any) -> Any:
    """In URLs, at any depth."""
    if isinstance(shown, dict):
        return {key: _without_passwords(value) for key, value in shown.items()}
    if isinstance(shown, list):
        return [_without_passwords(value) for value in shown]
    return redact(shown) if isinstance(shown, str) else shown


for command in (keys, top_command, workers_command, explain_command):
    cli.add_command(command)


def with_workers(config: Config, urls: list[str]) -> Config:
    return msgspec.structs.replace(config, fleet=msgspec.structs.replace(config.fleet, workers=urls))


def _set_up_logging(log: LogConfig) -> None:
    try:
        set_up_logging(log.level, log.format, log.audit_file)
    except OSError as error:
        raise click.ClickException(f"log.audit_file={log.audit_file!r}: cannot be written: {error.strerror}") from None


def _load(file: Path | None, flags: dict[str, Any]) -> Config:
    try:
        return load_config(file, os.environ, flags)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _run(main: Coroutine[Any, Any, T]) -> T:
    try:
        return uvloop.run(main)
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(redact(f"{type(error).__name__}: {error.strerror or error}")) from None

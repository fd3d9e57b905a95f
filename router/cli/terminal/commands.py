"""``warmroute top``, ``workers`` and ``explain``: the admin port's figures, in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop
from rich.console import Console, Group
from rich.live import Live

from router.cli.terminal.admin_client import AdminClient, AdminError, admin_url
from router.cli.terminal.answers import Decision, Worker
from router.cli.terminal.explain import explain
from router.cli.terminal.screen import error_table, plain, top_screen, worker_table
from router.config.loading import load_config
from router.config.schema import ConfigError
from router.core.printable import printable

T = TypeVar("T")

PIPED_COLUMNS = 160
AGAIN_S = 1.0
"""Pause before the next attempt to reach a router that went away."""
MIN_SHOWN_S = 0.1
"""Shortest time between two screens."""


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose the router. The default is this machine's router with the same configuration."""
    for option in (
        click.option("--admin-url", help="URL of the router's admin port.  [default: from admin.host and admin.port]"),
        click.option("--config", "file", type=click.Path(path_type=Path), help="The router's TOML file."),
    ):
        command = option(command)
    return command


@click.command("top")
@asks
@click.option("--once", is_flag=True, help="Print the screen once and exit.")
def top_command(file: Path | None, admin_url: str | None, once: bool) -> None:
    """Show the fleet and the last decisions, live."""
    console = _console()
    client = _client(file, admin_url)
    has_screen = _is_terminal() and not console.is_dumb_terminal
    _run(_watch(client, console) if has_screen and not once else _print_once(client, console))


@click.command("workers")
@asks
@click.option("--json", "as_json", is_flag=True, help="Print the admin port's JSON.")
def workers_command(file: Path | None, admin_url: str | None, as_json: bool) -> None:
    """List the workers."""
    kind = dict[str, Any] if as_json else Worker
    workers = _run(_client(file, admin_url).list("/workers", "workers", kind))
    if as_json:
        click.echo(_as_json(workers))
    else:
        _console().print(Group(worker_table(workers), error_table(workers)))


@click.command("explain")
@click.argument("request_id", metavar="ID")
@asks
def explain_command(request_id: str, file: Path | None, admin_url: str | None) -> None:
    """Explain what happened to a request. ID is its X-Request-Id."""
    client = _client(file, admin_url)
    decisions = _run(client.list("/decisions", "decisions", Decision))
    found = [decision for decision in decisions if decision["request_id"] == request_id]
    if not found:
        raise click.ClickException(
            f"{printable(request_id)} is not among the last {len(decisions)} requests that {client.url} remembers: raise "
            "admin.decisions, or try another router with --admin-url"
        )
    click.echo("\n".join(map(explain, found)), nl=False)


def _console() -> Console:
    """A console as wide as the terminal, or wide enough for all columns without one."""
    console = Console(highlight=False)
    if not _is_terminal() and "COLUMNS" not in os.environ:
        console.width = PIPED_COLUMNS
    return console


def _is_terminal() -> bool:
    """Whether the output is a terminal. ``Console.is_terminal`` is also true with FORCE_COLOR."""
    return sys.stdout.isatty()


def _as_json(workers: list[dict[str, Any]]) -> str:
    """JSON in ASCII, so that it contains no control characters for the terminal."""
    try:
        return json.dumps(workers, indent=2)
    except RecursionError:
        raise click.ClickException("the admin port's answer is nested too deep to print") from None


def _client(file: Path | None, url: str | None) -> AdminClient:
    try:
        admin = load_config(file, os.environ, {}).admin
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    return AdminClient(url or admin_url(admin), admin.token)


async def _print_once(client: AdminClient, console: Console) -> None:
    async with aclosing(client.snapshots()) as snapshots:
        async for shown in snapshots:
            console.print(top_screen(shown))
            return
    raise AdminError(f"{client.url} closed the connection before its first snapshot: try again")


async def _watch(client: AdminClient, console: Console) -> None:
    """Show snapshots until a signal ends it. If a router goes away after its first snapshot, wait for it."""
    was_there = False
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that Live restores the screen
    with Live(console=console, screen=True, auto_refresh=False) as live:
        show = partial(live.update, refresh=True)
        while True:
            try:
                async with aclosing(client.snapshots()) as snapshots:
                    async for shown in snapshots:
                        was_there = True
                        show(top_screen(shown, console.height))
                        await asyncio.sleep(MIN_SHOWN_S)
            except AdminError as error:
                if not was_there:
                    raise
                show(Group(plain(error), "", "Trying again each second. Press Ctrl-C to stop."))
            await asyncio.sleep(AGAIN_S)


def _run(main: Coroutine[Any, Any, T]) -> T:
    try:
        return uvloop.run(main)
    except AdminError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:
        sys.exit(143)

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
"""Behind a router that went away, until it is asked again."""
MIN_SHOWN_S = 0.1
"""For which a screen stays, however fast others come."""


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Options of who is asked. By default the router of this machine that has the same configuration."""
    for option in (
        click.option("--admin-url", help="Admin port.  [default: by admin.host and admin.port]"),
        click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of the router."),
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
            f"{client.url} remembers its last {len(decisions)} requests (admin.decisions), and {printable(request_id)} is not "
            "among them; another router may have had it"
        )
    click.echo("\n".join(map(explain, found)), nl=False)


def _console() -> Console:
    """As wide as the terminal; where there is none, wide enough."""
    console = Console(highlight=False)
    if not _is_terminal() and "COLUMNS" not in os.environ:
        console.width = PIPED_COLUMNS
    return console


def _is_terminal() -> bool:
    """Whether somebody looks at one. ``Console.is_terminal`` only says whether colours are wanted (FORCE_COLOR)."""
    return sys.stdout.isatty()


def _as_json(workers: list[dict[str, Any]]) -> str:
    """In ASCII, so that no text of it commands a terminal."""
    try:
        return json.dumps(workers, indent=2)
    except RecursionError:
        raise click.ClickException("the workers that were told are nested too deep to be shown") from None


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
    raise AdminError(f"{client.url} told nothing")


async def _watch(client: AdminClient, console: Console) -> None:
    """Until it is interrupted or terminated. A router that was there once is waited for."""
    was_there = False
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # the screen is given back
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
                show(Group(plain(error), "", "Asked again each second; ctrl-C ends."))
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

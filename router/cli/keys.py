"""``warmroute keys``: make, list and revoke API keys in their file.

The file stays as people wrote it: lines are added, and no other byte changes. The file is replaced as a whole, so a router that
reads it meanwhile sees the old one or the new one. A result that the router would refuse is not written.

TOML libraries that keep comments reorder [[keys]] between [tenants] tables, so entries are found by regular expressions.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import click
from msgspec.structs import replace

from router.core.tenants.keyring import BadKeys, KeyEntry, parse_keys

KEY_PREFIX = "wr-"
KEY_BYTES = 32

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*keys[ \t]*\]\][^\n]*(?:\n|\Z)", re.MULTILINE)
_NEXT_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)
_DISABLED = re.compile(r"^[ \t]*disabled[ \t]*=[^\n]*(?:\n|\Z)", re.MULTILINE)

file_option = click.option("--file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="TOML file.")


@click.group("keys")
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create")
@click.option("--tenant", required=True, help="Tenant of the key.")
@click.option("--id", "key_id", help="Id of the key in logs.  [default: the tenant's name and a number]")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), help="TOML file to which the key is added.")
@click.option("--new-tenant", is_flag=True, help="Add the tenant to the file if it is not listed, without limits.")
def create_command(tenant: str, key_id: str | None, file: Path | None, new_tenant: bool) -> None:
    """Make a key and show it once. Only its digest is stored."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    key_id = key_id or f"{tenant[:50]}-{secrets.token_hex(4)}"
    entry = f'[[keys]]\nid = "{key_id}"\ntenant = "{tenant}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'
    try:
        _checked(_with_entry("", tenant, entry))  # names that would break out of their quotes, above all
        if file is not None:
            _edit(file, lambda text: _with_entry(text, tenant, entry, may_add_tenant=new_tenant))
    except BadKeys as error:
        raise click.ClickException(f"{file or 'keys'}: {error}") from None
    click.echo(key)
    if file is None:
        click.echo("\n" + _with_entry("", tenant, entry), nl=False)
    else:
        click.echo(f"{key_id} was added to {file}; the key above is shown only now", err=True)


@keys.command("list")
@file_option
def list_command(file: Path) -> None:
    """Show each key's id, tenant and state."""
    try:
        for entry in parse_keys(_read(file)).entries:
            click.echo(f"{entry.id}\t{entry.tenant}\t{_state(entry)}")
    except BadKeys as error:
        raise click.ClickException(f"{file}: {error}") from None


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@file_option
def revoke_command(key_id: str, file: Path) -> None:
    """Disable a key. Routers notice when they read the file again."""
    try:
        _edit(file, lambda text: _without(text, key_id))
    except BadKeys as error:
        raise click.ClickException(f"{file}: {error}") from None


def _state(entry: KeyEntry) -> str:
    if entry.disabled:
        return "disabled"
    if entry.expires is None:
        return "valid"
    word = "expired" if entry.expires <= datetime.now(UTC) else "valid until"
    return f"{word} {entry.expires.isoformat()}"


def _with_entry(text: str, tenant: str, entry: str, *, may_add_tenant: bool = False) -> str:
    """``text`` and the entry behind it, and the tenant's table before it where there is none. Raises BadKeys for a tenant that
    a list of others lacks: mostly a slip, which would make a tenant without limits."""
    tables = tomllib.loads(_checked(text)).get("tenants", {})
    if tables and tenant not in tables and not may_add_tenant:
        near = get_close_matches(tenant, tables, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise BadKeys(
            f"lists no tenant {tenant}{meant}: give --new-tenant to add it, with every model and no limit of tokens"
        )
    name = tenant if re.fullmatch(r"[A-Za-z0-9_-]+", tenant) else f'"{tenant}"'
    parts = [text if not text or text.endswith("\n") else text + "\n"]
    parts += [] if tenant in tables else [f"[tenants.{name}]\n"]
    parts.append(entry)
    return "\n".join(part for part in parts if part)


def _without(text: str, key_id: str) -> str:
    """``text`` with that entry disabled, and every other as it was. Raises BadKeys."""
    before = parse_keys(text)
    after = _with_disabled(text, key_id)
    wanted = [replace(each, disabled=True) if each.id == key_id else each for each in before.entries]
    if parse_keys(after) != replace(before, entries=wanted):
        raise BadKeys(f"is written in a way that is not understood here: disable {key_id} by hand")
    return after


def _with_disabled(text: str, key_id: str) -> str:
    for header in _HEADER.finditer(text):
        end = following.start() if (following := _NEXT_TABLE.search(text, header.end())) else len(text)
        body = text[header.end() : end]
        try:
            is_found = tomllib.loads(body).get("id") == key_id
        except ValueError:
            continue
        if is_found:
            kept = _DISABLED.sub("", body)
            line_end = "" if header[0].endswith("\n") else "\n"
            return f"{text[: header.end()]}{line_end}disabled = true\n{kept}{text[end:]}"
    raise BadKeys(f"has no [[keys]] entry with the id {key_id[:64]!r}")


def _checked(text: str) -> str:
    parse_keys(text)
    return text


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise BadKeys(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadKeys("is not UTF-8") from None


def _edit(file: Path, change: Callable[[str], str]) -> None:
    """Raises BadKeys where the file cannot be read or written, or where what comes out would be refused."""
    file = file.resolve()  # where a link leads, so that the link stays one
    try:
        with _locked(file.parent):
            _replace(file, _checked(change(_read(file) if file.exists() else "")))
    except OSError as error:
        raise BadKeys(f"cannot be written: {error.strerror}") from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One change at a time, or one of two would be lost."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str) -> None:
    """Mode 0600, and the owner that it had."""
    with NamedTemporaryFile("wb", dir=file.parent, prefix=f".{file.name}.", delete=False) as fresh:
        try:
            if file.exists():
                owner = file.stat()
                os.fchown(fresh.fileno(), owner.st_uid, owner.st_gid)
            fresh.write(text.encode())
            fresh.flush()
            os.fsync(fresh.fileno())
            Path(fresh.name).replace(file)
        except BaseException:
            Path(fresh.name).unlink()
            raise

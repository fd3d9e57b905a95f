"""Keys are made, listed and revoked without touching anything else that stands in their file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli
from router.core.tenants.keyring import parse_keys

HAND_WRITTEN = (
    '# ours\r\n\n[tenants."a.b"] # first\nshare = 2\n\n  [[ keys ]]  # old\n  id = "old"\n  tenant = "a.b"\n'
    f'  sha256 = "{"0a" * 32}"\n  disabled = false\n[tenants.c]'
)


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["keys", *words], env={})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "keys.toml"
    made.write_bytes(HAND_WRITTEN.encode())
    return made


def entries(file: Path) -> dict[str, tuple[str, str, bool]]:
    listed = parse_keys(file.read_bytes().decode())
    return {entry.id: (entry.tenant, entry.sha256, entry.disabled) for entry in listed.entries}


def test_a_key_is_shown_once_and_only_its_digest_is_in_the_entry() -> None:
    key, _, entry = run("create", "--tenant", "acme").stdout.partition("\n")
    assert key.startswith("wr-")
    assert len(key) == 3 + 43
    (found,) = parse_keys(entry).entries
    assert (found.tenant, found.sha256) == ("acme", sha256(key.encode()).hexdigest())
    assert key not in entry
    assert run("create", "--tenant", "acme").stdout.partition("\n")[0] != key


@pytest.mark.parametrize("tenant", ["a.b", "c", "new", "n.ew"])
def test_a_key_is_added_and_all_that_stood_there_stays_byte_for_byte(file: Path, tenant: str) -> None:
    result = run("create", "--tenant", tenant, "--file", str(file), "--id", "fresh", "--new-tenant")
    assert result.exit_code == 0
    assert file.read_bytes().startswith(HAND_WRITTEN.encode())
    digest = sha256(result.stdout.strip().encode()).hexdigest()
    assert entries(file) == {"old": ("a.b", "0a" * 32, False), "fresh": (tenant, digest, False)}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_file_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    assert run("create", "--tenant", "acme", "--file", str(file)).exit_code == 0
    assert run("create", "--tenant", "acme", "--file", str(file)).exit_code == 0
    assert [tenant for tenant, _, _ in entries(file).values()] == ["acme", "acme"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_tenant_that_the_file_does_not_list_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    assert run("create", "--tenant", "acme-chat", "--file", str(file)).exit_code == 0
    before = file.read_bytes()
    slip = run("create", "--tenant", "acme-chta", "--file", str(file))
    assert (slip.exit_code, slip.stdout) == (1, "")
    assert "lists no tenant acme-chta (did you mean acme-chat?): give --new-tenant" in slip.stderr
    assert file.read_bytes() == before
    other = run("create", "--tenant", "zeta", "--file", str(file))
    assert "lists no tenant zeta: give --new-tenant" in other.stderr
    assert run("create", "--tenant", "zeta", "--file", str(file), "--new-tenant").exit_code == 0
    assert run("create", "--tenant", "zeta", "--file", str(file)).exit_code == 0
    assert [tenant for tenant, _, _ in entries(file).values()] == ["acme-chat", "zeta", "zeta"]


def test_a_link_to_the_file_stays_a_link(file: Path) -> None:
    link = file.parent / "link.toml"
    link.symlink_to(file)
    assert run("create", "--tenant", "c", "--file", str(link)).exit_code == 0
    assert link.is_symlink()
    assert len(entries(file)) == 2


@pytest.mark.parametrize(
    ("before", "words", "line"),
    [
        (HAND_WRITTEN, ("--tenant", "c", "--id", "old"), "key old: its id is given twice"),
        (HAND_WRITTEN, ("--tenant", "a b"), "tenants.'a b': a name is"),
        (HAND_WRITTEN, ("--tenant", 'a"]\n[x]\n#'), "is not TOML"),
        (HAND_WRITTEN, ("--tenant", "c", "--id", 'x"\ndisabled = "'), "keys"),
        ("[[[", ("--tenant", "c"), "is not TOML"),
        ("keys = []", ("--tenant", "c"), "is not TOML"),
        ("[tenants.c]\nshare = 0", ("--tenant", "c"), "tenants.c.share: Expected `float` > 0"),
    ],
)
def test_what_the_router_would_refuse_is_not_written(
    file: Path, before: str, words: tuple[str, ...], line: str
) -> None:
    file.write_bytes(before.encode())
    result = run("create", "--file", str(file), *words)
    assert result.exit_code == 1
    assert line in result.stderr
    assert result.stdout == ""
    assert file.read_bytes() == before.encode()


def test_a_key_is_revoked_by_its_id_and_the_rest_stays(file: Path) -> None:
    run("create", "--tenant", "c", "--file", str(file), "--id", "fresh")
    before = file.read_text("utf-8")
    assert run("revoke", "fresh", "--file", str(file)).exit_code == 0
    assert file.read_text("utf-8").replace("disabled = true\n", "") == before
    assert run("revoke", "old", "--file", str(file)).exit_code == 0
    assert [disabled for _, _, disabled in entries(file).values()] == [True, True]
    assert run("revoke", "absent", "--file", str(file)).exit_code == 1


def test_a_file_that_cannot_be_changed_line_by_line_is_left_to_people(file: Path) -> None:
    inline = f'keys = [{{id = "k", tenant = "c", sha256 = "{"0a" * 32}"}}]\n[tenants.c]\n'
    file.write_text(inline, "utf-8")
    result = run("revoke", "k", "--file", str(file))
    assert result.exit_code == 1
    assert file.read_text("utf-8") == inline


def test_keys_are_listed_with_their_state_and_without_their_digests(file: Path) -> None:
    rows = (("b", "disabled = true"), ("c", "expires = 2001-01-01T00:00:00Z"), ("d", "expires = 2999-01-01T00:00:00Z"))
    more = [f'\n[[keys]]\nid = "{n}"\ntenant = "c"\nsha256 = "{f"0{n}" * 32}"\n{state}' for n, state in rows]
    file.write_text(HAND_WRITTEN + "".join(more), "utf-8")
    told = run("list", "--file", str(file)).stdout
    assert [line.split("\t")[2] for line in told.splitlines()] == [
        "valid",
        "disabled",
        "expired 2001-01-01T00:00:00+00:00",
        "valid until 2999-01-01T00:00:00+00:00",
    ]
    assert "0a0a" not in told


def test_a_file_that_is_not_there_cannot_be_listed_or_revoked_in(tmp_path: Path) -> None:
    for words in (("list",), ("revoke", "x")):
        result = run(*words, "--file", str(tmp_path / "absent.toml"))
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1

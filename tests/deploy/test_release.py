"""A release names what it is made of: whatever is not named by its digest is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.helm import ROOT, helm, objects
from tests.deploy.helm import run as run_helm
from tests.deploy.variants import DIGEST, VARIANTS

RELEASE = ROOT / ".github" / "workflows" / "release.yml"
CI = RELEASE.with_name("ci.yml")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def release(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    command = [sys.executable, str(ROOT / "deploy" / "release.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_a_base_that_is_named_by_its_digest_is_built_on() -> None:
    done = release("base", f"python:3.11-slim@{DIGEST}")
    assert (done.returncode, done.stdout) == (0, f"python:3.11-slim@{DIGEST}\n")


@pytest.mark.parametrize(
    "reference",
    ["", "python:3.11-slim", "python@", "python@sha256:…", "python@sha256:abc", f"@{DIGEST}", f"a b@{DIGEST}"],
)
def test_a_base_without_its_digest_is_refused(reference: str) -> None:
    done = release("base", reference)
    assert done.returncode == 1
    assert "names no image by its digest" in done.stderr


def test_a_tag_that_is_not_the_projects_version_is_refused() -> None:
    done = release("version", "v99.0.0")
    assert done.returncode == 1
    assert "pyproject.toml says" in done.stderr


def test_the_chart_has_the_projects_version() -> None:
    chart = yaml.safe_load((ROOT / "deploy" / "chart" / "warmroute" / "Chart.yaml").read_text("utf-8"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert chart["version"] == chart["appVersion"]
    assert f'version = "{chart["version"]}"' in project


@pytest.mark.system
def test_a_released_chart_runs_the_image_that_was_released_and_holds_its_dashboards(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "helm").symlink_to(helm())
    folder = tmp_path / "dist"
    done = release(
        "chart", "--image", f"registry.example/warmroute@{DIGEST}", "--folder", str(folder), path=str(programs)
    )
    assert done.returncode == 0, done.stderr
    (package,) = folder.iterdir()
    values = tmp_path / "values.yaml"
    values.write_text(VARIANTS["watched"], "utf-8")
    rendered = run_helm("template", "router", str(package), "--values", str(values))
    assert rendered.returncode == 0, rendered.stderr
    assert f"image: registry.example/warmroute@{DIGEST}" in rendered.stdout
    assert any(one["kind"] == "ConfigMap" and "dashboard" in str(one["metadata"]) for one in objects(rendered.stdout))


def test_a_chart_for_an_image_without_its_digest_is_refused(tmp_path: Path) -> None:
    done = release("chart", "--image", "registry.example/warmroute:1.0", "--folder", str(tmp_path / "dist"))
    assert done.returncode == 1
    assert not (tmp_path / "dist").exists()


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    workflow = yaml.safe_load(file.read_text("utf-8"))
    assert workflow["permissions"] == {}, "each job says what it needs"
    named: dict[str, dict[str, Any]] = workflow["jobs"]
    return named


def test_the_workflow_builds_on_what_was_checked_and_after_all_tests() -> None:
    released = jobs(RELEASE)
    assert released["test"]["uses"] == "./.github/workflows/ci.yml"
    assert released["image"]["needs"] == "test"
    assert released["chart"]["needs"] == "image"
    steps = {step.get("id"): step for step in released["image"]["steps"]}
    assert steps["image"]["with"]["build-args"] == "PYTHON=${{ steps.checked.outputs.base }}"
    assert 'deploy/release.py base "$BASE"' in steps["checked"]["run"]


def test_only_the_jobs_that_publish_may_write() -> None:
    rights = {name: job["permissions"] for name, job in jobs(RELEASE).items()}
    assert rights == {
        "test": {"contents": "read"},
        "image": {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"},
        "chart": {"contents": "write", "packages": "write"},
    }
    assert all(job["permissions"] == {"contents": "read"} for job in jobs(CI).values())


@pytest.mark.parametrize("file", [RELEASE, CI], ids=lambda file: file.name)
def test_every_action_is_named_by_its_commit_and_says_its_version(file: Path) -> None:
    used = re.findall(r"uses: (.*)", file.read_text("utf-8"))
    assert used
    for each in used:
        assert each.startswith("./") or re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


@pytest.mark.parametrize("file", [RELEASE, CI], ids=lambda file: file.name)
def test_scripts_get_what_they_need_from_their_environment_and_fail_with_their_commands(file: Path) -> None:
    for job in jobs(file).values():
        for step in job.get("steps", ()):
            script = step.get("run", "")
            assert "${{" not in script, "it would be a part of the script's text"
            assert not re.search(r"(?m)^\s*(echo|printf|export)\b.*\$\(", script), "its failure would not be seen"


def test_a_check_that_fails_ends_the_step_before_anything_is_handed_on(tmp_path: Path) -> None:
    (checked,) = [step for step in jobs(RELEASE)["image"]["steps"] if step.get("id") == "checked"]
    output = tmp_path / "output"
    output.touch()
    for tag, base in (("v99.0.0", f"python:3.11-slim@{DIGEST}"), (f"v{VERSION}", "python:3.11-slim")):
        environment = {**os.environ, "GITHUB_OUTPUT": str(output), "GITHUB_REF_NAME": tag, "BASE": base}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", checked["run"]]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == 1
        assert output.read_text() == ""


def test_every_image_that_is_run_or_built_on_is_named_by_its_digest() -> None:
    images = [re.search(r"(?m)^  BASE: (.*)$", RELEASE.read_text("utf-8"))[1]]  # type: ignore[index]
    for job in jobs(CI).values():
        versions = job.get("strategy", {"matrix": {}})["matrix"].get("python", [""])
        images += [job["container"].replace("${{ matrix.python }}", version) for version in versions]
    compose = yaml.safe_load((ROOT / "deploy" / "compose" / "docker-compose.yaml").read_text("utf-8"))
    for service in compose["services"].values():
        named = re.fullmatch(r"\$\{\w+:-(.*)\}", service["image"])
        images.append(named[1] if named else service["image"])
    ours = [image for image in images if image.startswith("${WARMROUTE_IMAGE:?")]
    assert len(ours) == 3
    for image in images:
        assert image in ours or release("base", image).returncode == 0, image


@pytest.mark.parametrize("name", ["Makefile", "deploy/image/install", "deploy/image/Dockerfile", ".ci/run"])
def test_whatever_is_installed_is_locked_with_its_hash_or_lies_here_already(name: str) -> None:
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?m)^.*\bpip\"? (?:install|wheel|download) .*$", text):
        if "atheris" in line:  # a tool of whoever fuzzes, which no other target needs
            continue
        assert "--require-hashes" in line or "--no-index" in line, line
        assert "--no-index" not in line or "--no-build-isolation" in line or "*.whl" in line, line
    assert "# syntax" not in text, "a frontend by its tag would build the image"

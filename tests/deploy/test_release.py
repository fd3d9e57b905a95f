"""A release names what it is made of: whatever is not named by its digest is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.helm import ROOT, helm, objects
from tests.deploy.helm import run as run_helm
from tests.deploy.variants import DIGEST, VARIANTS

WORKFLOW = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")


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


def test_the_workflow_builds_on_what_was_checked_and_after_all_tests() -> None:
    workflow = yaml.safe_load(WORKFLOW)
    job = workflow["jobs"]["release"]
    assert job["needs"] == "test"
    assert workflow["jobs"]["test"]["uses"] == "./.github/workflows/ci.yml"
    build = next(step for step in job["steps"] if step.get("id") == "image")
    assert build["with"]["build-args"] == "PYTHON=${{ steps.base.outputs.reference }}"
    base = next(step for step in job["steps"] if step.get("id") == "base")
    assert "deploy/release.py base" in base["run"]

"""The image: what its recipe promises, and that the same steps give a router that runs, without a container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from router.config.loading import load_config
from tests.deploy.helm import ROOT

IMAGE = ROOT / "deploy" / "image"
COMPOSE = ROOT / "deploy" / "compose"
DOCKERFILE = (IMAGE / "Dockerfile").read_text()


def stages() -> list[str]:
    return re.split(r"(?m)^(?=FROM )", DOCKERFILE)[1:]


def test_the_base_is_named_by_whoever_releases_and_by_its_digest() -> None:
    assert "ARG PYTHON\n" in DOCKERFILE, "without a default, so that an unset one is refused"
    assert all(stage.startswith("FROM ${PYTHON}") for stage in stages())
    assert "@sha256:…" in DOCKERFILE


def test_the_last_stage_runs_as_nobody_and_builds_nothing() -> None:
    last = stages()[-1]
    assert "USER 10001:10001" in last
    assert "pip" not in last
    assert "apt" not in DOCKERFILE
    assert 'ENTRYPOINT ["warmroute"]' in last, "as process 1, which SIGTERM reaches"
    assert "STOPSIGNAL SIGTERM" in last


LEFT_OUT = {"recall-onnx", "vllm", "dev"}
"""A model of its own, another machine's, and what is developed with."""


def test_the_image_has_every_extra_that_settings_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {
        line for extra, lines in project["optional-dependencies"].items() if extra not in LEFT_OUT for line in lines
    }
    locked = set(re.findall(r"(?m)^([a-z0-9-]+)==", (IMAGE / "requirements.lock").read_text()))
    names = {re.split(r"[\[<>=]", line)[0].replace("_", "-") for line in {*needed, *project["dependencies"]}}
    assert names <= locked


def test_what_is_copied_is_let_through_to_the_build() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", DOCKERFILE) for word in line.split()]
    assert set(copied) == let_through
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.system
def test_the_images_steps_give_a_router_that_runs(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "router", source / "router")
    for step, folder in (("packages", made), ("vocabularies", made / "vocabularies"), ("project", made)):
        command = [str(IMAGE / "install"), step, str(folder)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    config = tmp_path / "router.toml"
    config.write_text('[tokens]\ntokenizer = "tiktoken:o200k_base"\n[fleet]\nworkers = ["http://10.0.0.1:8000"]\n')
    env = {"PATH": os.environ["PATH"], "TIKTOKEN_CACHE_DIR": str(made / "vocabularies")}
    checked = subprocess.run(
        [str(made / "bin" / "warmroute"), "check-config", str(config)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    left = [
        path.name for path in (made / "lib").rglob("*") if path.name in ("pytest", "mypy", "grafana_foundation_sdk")
    ]
    assert not left


def test_an_unknown_step_is_refused() -> None:
    done = subprocess.run([str(IMAGE / "install"), "all", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, "packages, project or vocabularies" in done.stderr) == (2, True)


def test_the_recipe_is_as_it_should_be() -> None:
    found = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), str(IMAGE / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_a_router_takes_composes_configuration_and_knows_the_whole_fleet() -> None:
    compose = yaml.safe_load((COMPOSE / "docker-compose.yaml").read_text())
    env = {name: _without_variables(value) for name, value in compose["x-router"]["environment"].items()}
    loaded = load_config(COMPOSE / "router.toml", env, {})
    assert compose["x-router"]["stop_grace_period"] == "2m30s"
    _, _, workers, _, first, *_ = compose["services"]["fleet"]["command"]
    assert workers == str(len(loaded.fleet.workers))
    assert loaded.fleet.workers == [f"http://fleet:{int(first) + number}" for number in range(int(workers))]
    assert loaded.server.leave_s + loaded.server.drain_s < 150


def _without_variables(value: str) -> str:
    """As if nobody had set any; those without a default are long secrets."""
    return re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)\}", lambda found: found[1] or "s" * 16, value)


def test_compose_names_files_that_there_are_and_opens_no_port_to_the_world() -> None:
    services = yaml.safe_load((COMPOSE / "docker-compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE / source).exists(), source
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    routers = [services[name] for name in ("router-1", "router-2")]
    assert all(router["read_only"] and router["cap_drop"] == ["ALL"] for router in routers)
    assert len({volume for router in routers for volume in router["volumes"] if "/var/lib" in volume}) == 2

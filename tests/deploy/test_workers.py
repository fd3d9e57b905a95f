"""Workers as deploy/workers has them: valid, drained in time, and reached by the chart's routers alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.deploy import helm
from tests.deploy.variants import VARIANTS

pytestmark = pytest.mark.system

WORKERS = helm.ROOT / "deploy" / "workers"
FLAGS = yaml.safe_load((WORKERS / "vllm.yaml").read_text("utf-8"))


@cache
def workers() -> dict[str, helm.Object]:
    """By kind."""
    return {str(each["kind"]): each for each in helm.objects(helm.kustomized(WORKERS))}


@pytest.mark.parametrize("kubernetes", ["1.29", "1.34"])
def test_they_are_valid(kubernetes: str) -> None:
    assert len(workers()) == 5
    for each in workers().values():
        kubernetes_validate.validate(each, kubernetes, strict=True)


def test_the_flags_reach_the_engine() -> None:
    pod = workers()["Deployment"]["spec"]["template"]["spec"]
    assert yaml.safe_load(workers()["ConfigMap"]["data"]["vllm.yaml"]) == FLAGS
    (mounted,) = [volume for volume in pod["volumes"] if volume["name"] == "config"]
    assert mounted["configMap"]["name"] == workers()["ConfigMap"]["metadata"]["name"]
    assert "/etc/vllm/vllm.yaml" in pod["containers"][0]["args"]


def test_streams_end_before_the_pod_does() -> None:
    pod = workers()["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > FLAGS["shutdown-timeout"]


def test_the_charts_routers_reach_them_and_nobody_else(tmp_path: Path) -> None:
    spec = workers()["NetworkPolicy"]["spec"]
    (rule,) = spec["ingress"]
    (peer,) = rule["from"]
    (workload,) = [
        each
        for each in helm.rendered(VARIANTS["kubernetes"], tmp_path)
        if each["kind"] in ("Deployment", "StatefulSet")
    ]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": helm.NAMESPACE}
    assert spec["podSelector"]["matchLabels"] == workers()["Deployment"]["spec"]["template"]["metadata"]["labels"]


def test_they_are_where_the_documented_values_look_for_them(tmp_path: Path) -> None:
    service = workers()["Service"]
    values = yaml.safe_load(VARIANTS["kubernetes"])["workers"]["kubernetes"]
    assert (service["metadata"]["namespace"], service["metadata"]["name"]) == (values["namespace"], values["service"])
    assert values["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert service["spec"]["clusterIP"] == "None"

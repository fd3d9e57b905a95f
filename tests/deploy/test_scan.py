"""What a scanner says of deploy/: each thing that it minds is mended, or stands here with the reason why it stays."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from tests.deploy import checkov, helm
from tests.deploy.variants import DIGEST, VARIANTS

pytestmark = pytest.mark.system

STAYS = MappingProxyType(
    {
        "CKV_K8S_21": "the namespace is said by whoever installs",
        "CKV_K8S_11": "a limit of CPU would stop an event loop in the midst of all its streams; what is asked for is set",
        "CKV_K8S_35": "the admin token, and URLs with passwords, are settings; keys, salt and certificates are files",
        "CKV2_K8S_6": "the trial has no policies",
        "CKV_K8S_38": "pods that watch their workers ask the API server; others get no token",
    }
)
IMAGE_STAYS = MappingProxyType(
    {
        "CKV_DOCKER_2": "Kubernetes and compose ask in their own ways, and no other healthcheck is read",
        "CKV_DOCKER_7": "the base is named by whoever builds, by its digest; deploy/release.py refuses another",
    }
)
WORKERS_STAYS = MappingProxyType(
    {
        **dict.fromkeys(
            ("CKV_K8S_14", "CKV_K8S_43"), "image and digest are for an overlay: they go with driver and GPU"
        ),
        **dict.fromkeys(("CKV_K8S_11", "CKV_K8S_13"), "CPU and memory are for an overlay: they go with the model"),
        **dict.fromkeys(
            ("CKV_K8S_22", "CKV_K8S_23", "CKV_K8S_40"), "vLLM's image runs as root, and writes caches there"
        ),
        "CKV_K8S_35": "vLLM takes its API key from the environment, or from a command line that everybody sees",
    }
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chart_has_nothing_that_a_scanner_minds_but_for_a_reason(variant: str, tmp_path: Path) -> None:
    done = helm.template(VARIANTS[variant] + f"image: {{digest: '{DIGEST}'}}\n", tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "rendered.yaml"
    file.write_text(done.stdout, "utf-8")
    passed, failed = checkov.scan("kubernetes", file)
    assert passed > 50
    assert failed.keys() <= STAYS.keys()
    assert ("CKV_K8S_38" in failed) is (variant == "kubernetes")
    assert ("CKV2_K8S_6" in failed) is (variant == "open")


def test_the_image_has_nothing_that_a_scanner_minds() -> None:
    passed, failed = checkov.scan("dockerfile", helm.ROOT / "deploy" / "image" / "Dockerfile")
    assert passed > 50
    assert failed.keys() == IMAGE_STAYS.keys()


def test_the_workers_have_nothing_that_a_scanner_minds_but_for_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "workers.yaml"
    file.write_text(helm.kustomized(helm.ROOT / "deploy" / "workers"), "utf-8")
    passed, failed = checkov.scan("kubernetes", file)
    assert passed > 50
    assert failed.keys() == WORKERS_STAYS.keys()

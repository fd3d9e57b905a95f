"""The chart in every documented variant: what it renders is as agreed, is valid, starts a router, and lets through what must
pass and nothing else."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from router.config.loading import load_config
from router.config.reference import settings
from tests.deploy import helm
from tests.deploy.helm import Object
from tests.deploy.policies import Peer, allows
from tests.deploy.variants import BASE, DNS, VARIANTS

pytestmark = pytest.mark.system

GOLDEN = Path(__file__).parent / "golden"
KUBERNETES = "1.34"
VERSIONS = ("1.29", "1.31", KUBERNETES)
"""The oldest that is looked after, the newest, and one between."""
OF_OPERATORS = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
"""Their schemas are Prometheus' operator's."""


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rendered(variant: str, directory: Path, **more: str) -> list[Object]:
    """``more``: the release's name and namespace."""
    return helm.rendered(VARIANTS[variant], directory, **more)


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def workload(objects: list[Object]) -> Object:
    (found,) = of_kind(objects, "Deployment", "StatefulSet")
    return found


def pod(objects: list[Object]) -> Object:
    spec: Object = workload(objects)["spec"]["template"]["spec"]
    return spec


def without_dashboards(objects: list[Object]) -> list[Object]:
    """Their text is grafana/dashboards' own."""
    for each in objects:
        if each["kind"] == "ConfigMap" and "dashboard" in each["metadata"]["name"]:
            each["data"] = dict.fromkeys(each["data"], "…")
        if each["kind"] == "PrometheusRule":
            each["spec"] = {"groups": [group["name"] for group in each["spec"]["groups"]]}
    return objects


def test_what_is_rendered_is_as_agreed(variant: str, tmp_path: Path) -> None:
    """``GOLDEN=1`` writes what is rendered now."""
    objects = without_dashboards(rendered(variant, tmp_path))
    text = yaml.safe_dump_all(sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"])), width=120)
    path = GOLDEN / f"{variant}.yaml"
    if os.environ.get("GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_what_is_rendered_is_valid(variant: str, tmp_path: Path) -> None:
    for each in rendered(variant, tmp_path):
        for version in VERSIONS:
            if each["kind"] not in OF_OPERATORS:
                kubernetes_validate.validate(each, version, strict=True)


def test_the_configuration_is_one_that_a_router_takes(variant: str, tmp_path: Path) -> None:
    objects = rendered(variant, tmp_path)
    (config,) = [each for each in of_kind(objects, "ConfigMap") if "config.toml" in each["data"]]
    for name in ("tls/tls.crt", "tls/tls.key", "keys/keys.toml", "salt/salt", "sessions/secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a secret of the tests")
    file = tmp_path / "config.toml"
    file.write_text(config["data"]["config.toml"].replace("/etc/warmroute", str(tmp_path)))
    env = {
        each["name"]: "redis://x" if "STORE" in each["name"] else "t" * 20
        for each in pod(objects)["containers"][0]["env"]
    }
    loaded = load_config(file, env, {})
    grace = pod(objects)["terminationGracePeriodSeconds"]
    assert grace > loaded.server.leave_s + loaded.server.drain_s
    assert loaded.admin.token


def test_pods_may_do_as_little_as_can_be(variant: str, tmp_path: Path) -> None:
    spec = pod(rendered(variant, tmp_path))
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] == (variant == "kubernetes")
    assert container["resources"]["limits"]["memory"]
    names = {volume["name"] for volume in spec["volumes"]} | {"state"}
    assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_a_router_is_not_begun_anew_because_clients_fill_its_data_port(variant: str, tmp_path: Path) -> None:
    (container,) = pod(rendered(variant, tmp_path))["containers"]
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "admin"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "admin"}
    scheme = "HTTPS" if variant == "tls" else "HTTP"
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http", "scheme": scheme}


def test_no_secret_is_in_what_is_rendered(variant: str, tmp_path: Path) -> None:
    assert not of_kind(rendered(variant, tmp_path), "Secret")


def test_rights_are_given_where_workers_are_watched_and_only_these(tmp_path: Path) -> None:
    for variant in VARIANTS:
        roles = of_kind(rendered(variant, tmp_path), "Role", "ClusterRole")
        if variant != "kubernetes":
            assert not roles
            continue
        (role,) = roles
        assert role["metadata"]["namespace"] == "models"
        assert role["rules"] == [
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
        ]


def test_releases_in_two_namespaces_may_watch_the_same_workers(tmp_path: Path) -> None:
    here, there = (rendered("kubernetes", tmp_path, namespace=each) for each in ("here", "there"))
    rights = [
        {
            (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"])
            for each in of_kind(objects, "Role", "RoleBinding")
        }
        for objects in (here, there)
    ]
    assert not rights[0] & rights[1]


@pytest.mark.parametrize("release", ["2024", "2-routers", "my.router", "1e3", "true", "no", "r" * 53])
def test_whatever_a_release_is_called_what_it_makes_may_be_called(release: str, tmp_path: Path) -> None:
    for each in rendered("watched", tmp_path, release=release):
        if each["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
        name = each["metadata"]["name"]
        assert isinstance(name, str)
        assert each["kind"] != "Service" or re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name), name
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == release


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    values = VARIANTS["redis"].replace("warmroute-keys", "'123'").replace("warmroute-admin", "'1e3'")
    values = values.replace("warmroute-redis", "'0'").replace("storageClass: fast", "storageClass: '1'")
    for each in helm.rendered(values + "priorityClassName: '1000'\n", tmp_path):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_routers_without_workers_keep_no_node_from_being_emptied(tmp_path: Path) -> None:
    (budget,) = of_kind(rendered("stateless", tmp_path), "PodDisruptionBudget")
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_names_may_be_asked_for_at_other_ports(tmp_path: Path) -> None:
    values = BASE + "  dns: {peers: [{ipBlock: {cidr: 192.0.2.53/32}}], ports: [5353]}\n" + DNS
    policies = of_kind(helm.rendered(values, tmp_path), "NetworkPolicy")
    assert allows(policies, "inference", ROUTER, "Egress", Peer(ip="192.0.2.53"), 5353)
    assert not allows(policies, "inference", ROUTER, "Egress", DNS_POD, 53)


def test_dashboards_need_no_labels(tmp_path: Path) -> None:
    values = VARIANTS["watched"].replace(
        "dashboards: {enabled: true}", "dashboards: {enabled: true, labels: {grafana_dashboard: null}}"
    )
    assert of_kind(helm.rendered(values, tmp_path), "ConfigMap")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(BASE + DNS + "replica: 3\n", "replica", id="misspelt"),
        pytest.param(BASE + DNS + "replicas: 0\n", "replicas", id="no replica"),
        pytest.param(BASE + DNS + "config: {server: 5}\n", "config", id="no section"),
        pytest.param(BASE + DNS + "image: {digest: 'sha256:latest'}\n", "digest", id="no digest"),
        pytest.param(BASE + "  dns: {peers: []}\n" + DNS, "peers", id="no peer, which would be all"),
        pytest.param(BASE + "  redis: {ports: []}\n" + DNS, "ports", id="no port, which would be all"),
        pytest.param(BASE, "workers.dns: required", id="no workers"),
        pytest.param(BASE + DNS + "state: {store: redis}\n", "state.volume.enabled=false", id="journal without a disk"),
        pytest.param(
            BASE + DNS + "state: {store: sqlite, volume: {enabled: true}}\n",
            "each replica would have",
            id="sqlite twice",
        ),
        pytest.param(
            BASE + DNS + "state: {store: redis, volume: {enabled: true}}\n", "secrets.storeUrl.name", id="redis where"
        ),
        pytest.param(DNS, "secrets.adminToken.name", id="no admin token"),
        pytest.param(BASE + DNS + "insecureNoAuth: true\n", "either a Secret", id="keys and none"),
        pytest.param(
            BASE + "workers: {source: kubernetes, kubernetes: {service: vllm}}\n",
            "kubernetesApi.peers",
            id="blocked API",
        ),
        pytest.param(
            BASE + DNS + "monitoring: {kind: PodMonitor}\n", "networkPolicy.prometheus: required", id="blocked scrapes"
        ),
        pytest.param(
            BASE + DNS + "autoscaling: {enabled: true}\n", "networkPolicy.prometheus: required", id="scaled by nothing"
        ),
        pytest.param(
            "secrets: {adminToken: {name: a}}\ninsecureNoAuth: true\n" + DNS, "workers.peers", id="blocked workers"
        ),
        pytest.param(
            BASE + DNS + "service: {type: LoadBalancer}\n", "networkPolicy.clients: required", id="blocked clients"
        ),
        pytest.param(BASE + DNS.replace("8000", "9000"), "networkPolicy.workers.ports: 9000", id="blocked port by DNS"),
        pytest.param(
            VARIANTS["kubernetes"].replace("port: http", "port: 9000"),
            "networkPolicy.workers.ports: 9000",
            id="blocked port of pods",
        ),
        pytest.param(
            VARIANTS["redis"].replace("storeUrl", "recallUrl: {name: a}\n  storeUrl"),
            "networkPolicy.postgres.peers: required",
            id="blocked index",
        ),
        pytest.param(
            VARIANTS["redis"].replace("storeUrl", "recallUrl: {name: a}\n  encryption: {name: b}\n  storeUrl"),
            "not together with secrets.encryption",
            id="encrypted and in clear",
        ),
        pytest.param(BASE + DNS + "state: {volume: {enabled: true}}\n", "state.volume.enabled", id="disk for nothing"),
        pytest.param(
            VARIANTS["stateless"].replace("salt:", "storeUrl: {name: a}\n  salt:"),
            "secrets.storeUrl",
            id="store unused",
        ),
        pytest.param(
            VARIANTS["autoscaled"].replace("max: 6", "max: 1"), "autoscaling.min", id="fewer at the most than the least"
        ),
        pytest.param(
            BASE + DNS + "config: {context: {recall_index: 'postgresql://u:p@h:5432/d'}}\n",
            "secrets.recallUrl",
            id="a password in the configuration",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_named(values: str, said: str, tmp_path: Path) -> None:
    found = helm.template(values, tmp_path)
    assert found.returncode != 0
    assert said in found.stderr


MAY_BE_SAID_ANEW = {"server.host", "admin.host"}
"""What the chart sets and nothing else of it depends on: addresses of another family."""


def settings_of_the_chart(directory: Path) -> Iterator[str]:
    for variant in VARIANTS:
        (config,) = [each for each in rendered(variant, directory) if "config.toml" in each.get("data", ())]
        for section, keys in tomllib.loads(config["data"]["config.toml"]).items():
            yield from (f"{section}.{key}" for key in keys)


def test_what_the_chart_says_or_is_secret_cannot_be_said_by_config(tmp_path: Path) -> None:
    secret = {setting.key for setting in settings() if setting.is_secret} - {"context.recall_index"}
    for setting in sorted((secret | set(settings_of_the_chart(tmp_path))) - MAY_BE_SAID_ANEW):
        section, key = setting.split(".")
        found = helm.template(f"{VARIANTS['stateless']}config: {{{section}: {{{key}: 600}}}}\n", tmp_path)
        assert f"config.{setting}: is said by" in found.stderr, setting


def test_each_secret_reaches_the_router_by_reference(tmp_path: Path) -> None:
    secrets = yaml.safe_load((helm.CHART / "values.yaml").read_text())["secrets"]
    for name in secrets:
        values = yaml.safe_load(VARIANTS["redis"])
        values["networkPolicy"]["postgres"] = {"peers": [{"podSelector": {}}]}
        values["secrets"][name] = {"name": f"of-{name}".lower()}
        assert f"of-{name}".lower() in json.dumps(pod(helm.rendered(yaml.safe_dump(values), tmp_path))), name


def test_a_file_that_the_configuration_names_can_be_mounted(tmp_path: Path) -> None:
    values = yaml.safe_load(VARIANTS["stateless"])
    values["config"] = {"fleet": {"ca_file": "/etc/ca/ca.crt"}}
    values["extraVolumes"] = [{"name": "ca", "configMap": {"name": "private-ca"}}]
    values["extraVolumeMounts"] = [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}]
    objects = helm.rendered(yaml.safe_dump(values), tmp_path)
    spec = pod(objects)
    assert values["extraVolumes"][0] in spec["volumes"]
    assert values["extraVolumeMounts"][0] in spec["containers"][0]["volumeMounts"]
    kubernetes_validate.validate(workload(objects), KUBERNETES, strict=True)


ROUTER = {"app.kubernetes.io/name": "warmroute", "app.kubernetes.io/instance": "router"}
CLIENT, ELSEWHERE = Peer("inference", {"app": "gateway"}), Peer("default", {"app": "gateway"})
PROMETHEUS, REDIS = Peer("monitoring", {"app": "prometheus"}), Peer("inference", {"app": "redis"})
WORKER, DNS_POD = Peer("models", {"app": "vllm"}), Peer("kube-system", {"k8s-app": "kube-dns"})
API, WORLD = Peer(ip="192.0.2.10"), Peer(ip="203.0.113.7")

RULES = [
    # variant, direction, peer, port, is allowed, why
    ("watched", "Ingress", CLIENT, 8080, True, "clients of the namespace"),
    ("watched", "Ingress", ELSEWHERE, 8080, False, "other namespaces are not clients unless they are named"),
    ("watched", "Ingress", PROMETHEUS, 8081, True, "it scrapes"),
    ("watched", "Ingress", PROMETHEUS, 8080, False, "it asks no model"),
    ("watched", "Ingress", CLIENT, 8081, False, "the admin port tells what other tenants ask"),
    ("stateless", "Ingress", PROMETHEUS, 8081, False, "nobody was named"),
    ("stateless", "Ingress", WORLD, 8080, False, "what is outside comes through a gateway"),
    ("stateless", "Egress", WORKER, 8000, True, "that is what it is for"),
    ("stateless", "Egress", WORKER, 22, False, "only where they serve"),
    ("stateless", "Egress", DNS_POD, 53, True, "names"),
    ("stateless", "Egress", WORLD, 443, False, "what would be carried out would go there"),
    ("stateless", "Egress", API, 443, False, "it has no business there"),
    ("stateless", "Egress", REDIS, 6379, False, "it keeps no sessions"),
    ("redis", "Egress", REDIS, 6379, True, "sessions"),
    ("redis", "Egress", REDIS, 22, False, "only where it serves"),
    ("kubernetes", "Egress", API, 6443, True, "it watches pods"),
    ("kubernetes", "Egress", Peer(ip="192.0.2.11"), 6443, False, "only the API server"),
]


@pytest.mark.parametrize(("variant", "direction", "peer", "port", "is_allowed", "why"), RULES)
def test_policies_let_through_what_must_pass_and_nothing_else(
    variant: str, direction: str, peer: Peer, port: int, is_allowed: bool, why: str, tmp_path: Path
) -> None:
    policies = of_kind(rendered(variant, tmp_path), "NetworkPolicy")
    assert allows(policies, "inference", ROUTER, direction, peer, port) == is_allowed, why


def test_dashboards_and_rules_are_those_of_the_project(tmp_path: Path) -> None:
    objects = rendered("watched", tmp_path)
    boards = {name: text for each in of_kind(objects, "ConfigMap") for name, text in each["data"].items()}
    for path in (helm.ROOT / "grafana" / "dashboards").glob("*.json"):
        assert boards[path.name] == path.read_text()
    (rule,) = of_kind(objects, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((helm.ROOT / "grafana" / "rules" / "warmroute.yaml").read_text())


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_what_is_scraped_has_the_name_that_alerts_look_for(kind: str, tmp_path: Path) -> None:
    objects = helm.rendered(VARIANTS["watched"].replace("kind: PodMonitor", f"kind: {kind}"), tmp_path)
    (monitor,), (rules,) = of_kind(objects, kind), of_kind(objects, "PrometheusRule")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"]
    (job,) = [each["replacement"] for each in endpoint["relabelings"] if each["targetLabel"] == "job"]
    looked_for = re.findall(r'job=~"([^"]+)"', json.dumps(rules["spec"]).replace('\\"', '"'))
    assert looked_for
    assert all(re.fullmatch(pattern, job) for pattern in looked_for)


@pytest.mark.parametrize("region", ["east", "west"])
def test_a_regions_routers_may_be_scraped_and_reach_its_store(region: str, tmp_path: Path) -> None:
    objects = helm.rendered((helm.ROOT / "deploy" / "regions" / f"{region}.yaml").read_text(), tmp_path)
    policies = of_kind(objects, "NetworkPolicy")
    assert allows(policies, "inference", ROUTER, "Ingress", PROMETHEUS, 8081)
    assert allows(policies, "inference", ROUTER, "Egress", Peer("redis", {}), 6379)


def test_the_chart_can_be_packed_with_what_it_links_to(tmp_path: Path) -> None:
    found = helm.run("package", str(helm.CHART), "--destination", str(tmp_path))
    assert found.returncode == 0, found.stderr
    (packed,) = tmp_path.glob("*.tgz")
    again = helm.run("template", "router", str(packed), "--values", str(_written(tmp_path, VARIANTS["watched"])))
    assert "warmroute-errors" in again.stdout or "ErrorsBurn" in again.stdout


def _written(directory: Path, values: str) -> Path:
    path = directory / "values.yaml"
    path.write_text(values)
    return path


def test_every_value_is_explained() -> None:
    text = (helm.ROOT / "docs" / "kubernetes.md").read_text()
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text())
    assert not [name for name in values if not re.search(rf"`{name}\b", text)]
    assert not [name for name in VARIANTS if f"**{name}**" not in text]

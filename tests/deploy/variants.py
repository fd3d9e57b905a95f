"""Values of the chart, by the names that docs/kubernetes.md gives them: the least that each takes."""

from __future__ import annotations

from types import MappingProxyType

DIGEST = "sha256:" + "a1" * 32
"""Of an image."""
BASE = """
secrets:
  keys: {name: warmroute-keys}
  salt: {name: warmroute-salt}
  adminToken: {name: warmroute-admin}
networkPolicy:
  workers: {peers: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: models}}}]}
"""
DNS = "workers: {source: dns, dns: 'vllm.models.svc.cluster.local:8000'}\n"
PROMETHEUS = "  prometheus: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]\n"
REDIS = """
  storeUrl: {name: warmroute-redis}
  sessions: {name: warmroute-sessions}
"""

VARIANTS = MappingProxyType(
    {
        "stateless": BASE + DNS,
        "list": BASE + "workers: {source: list, list: ['http://10.0.0.1:8000', 'http://10.0.0.2:8000']}\n",
        "kubernetes": BASE
        + "  kubernetesApi: {peers: [{ipBlock: {cidr: 192.0.2.10/32}}]}\n"
        + "workers: {source: kubernetes, kubernetes: {namespace: models, service: vllm, port: http}}\n",
        "redis": BASE.replace("networkPolicy:", REDIS.strip("\n") + "\nnetworkPolicy:")
        + "  redis: {peers: [{podSelector: {matchLabels: {app: redis}}}]}\n"
        + DNS
        + "state: {store: redis, volume: {enabled: true, size: 2Gi, storageClass: fast}}\n",
        "redis-disposable": BASE.replace("networkPolicy:", REDIS.strip("\n") + "\nnetworkPolicy:")
        + "  redis: {peers: [{podSelector: {matchLabels: {app: redis}}}]}\n"
        + DNS
        + "state: {store: redis, disposable: true}\n",
        "sqlite": BASE + DNS + "replicas: 1\nstate: {store: sqlite, volume: {enabled: true}}\n",
        "tls": BASE.replace("  adminToken", "  tls: {name: warmroute-tls}\n  adminToken") + DNS,
        "autoscaled": BASE + PROMETHEUS + DNS + "autoscaling: {enabled: true, min: 2, max: 6}\n",
        "watched": BASE
        + PROMETHEUS
        + DNS
        + "monitoring: {kind: PodMonitor, rules: {enabled: true}, dashboards: {enabled: true}}\n",
        "open": "insecureNoAuth: true\nsecrets: {adminToken: {name: warmroute-admin}}\nnetworkPolicy: {enabled: false}\n"
        + DNS,
    }
)

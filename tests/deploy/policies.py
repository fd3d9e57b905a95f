"""What NetworkPolicies let through, as Kubernetes documents it: a pod that some policy selects in a direction gets what any of
those allows, and nothing else."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod, or with ``ip`` something outside."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ip: str = ""


def allows(
    policies: Sequence[Policy], namespace: str, labels: Mapping[str, str], direction: str, peer: Peer, port: int
) -> bool:
    selected = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], labels)
    ]
    rules = [rule for spec in selected for rule in spec.get(direction.lower()) or ()]
    return not selected or any(_is_allowed(rule, namespace, direction, peer, port) for rule in rules)


def _is_allowed(rule: Policy, namespace: str, direction: str, peer: Peer, port: int) -> bool:
    peers = rule.get("from" if direction == "Ingress" else "to")
    ports = rule.get("ports")
    is_there = peers is None or any(_is_peer(each, namespace, peer) for each in peers)
    return is_there and (ports is None or any(each["port"] == port for each in ports))


def _is_peer(each: Policy, namespace: str, peer: Peer) -> bool:
    if "ipBlock" in each:
        return bool(peer.ip) and ipaddress.ip_address(peer.ip) in ipaddress.ip_network(each["ipBlock"]["cidr"])
    if peer.ip:
        return False
    if "namespaceSelector" in each:
        is_there = _selects(each["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        is_there = peer.namespace == namespace
    return is_there and _selects(each.get("podSelector") or {}, peer.labels)


def _selects(selector: Policy, labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "not understood here"
    return (selector.get("matchLabels") or {}).items() <= labels.items()

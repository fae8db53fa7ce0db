"""Who may talk to whom, in the plainest Python there is: the truth table that compilers are held against.

It reads policy documents as they are written and goes through them for one connection at a time. No
selector is cached, nothing is turned into identities or tables. Slow and obvious on purpose.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """An end of a connection: a pod, this node, another node, or an address outside of the cluster."""

    kind: str  # "pod", "host", "remote-node" or "world"
    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (name, protocol) -> number


@dataclass(frozen=True)
class Policy:
    """A policy document with its kind and namespace ("" for one of the whole cluster)."""

    kind: str
    namespace: str
    spec: Document


def allowed(policies: Iterable[Policy], source: Peer, target: Peer, protocol: str, port: int) -> bool:
    """Whether `source` may open a connection to `port` of `target`."""
    policies = list(policies)
    return _passes(policies, source, target, "egress", protocol, port) and _passes(
        policies, target, source, "ingress", protocol, port
    )


def _passes(
    policies: list[Policy], subject: Peer, peer: Peer, direction: str, protocol: str, port: int
) -> bool:
    """Whether the policies of `subject` let the connection through in `direction`."""
    if subject.kind != "pod":
        return True
    if direction == "ingress" and peer.kind == "host":
        return True
    receiver = subject if direction == "ingress" else peer
    isolated = False
    allows = False
    for policy in policies:
        if policy.kind == "NetworkPolicy":
            closes, lets = _kubernetes(policy, subject, peer, direction, receiver, protocol, port)
            denies = False
        else:
            closes, lets, denies = _cilium(policy, subject, peer, direction, receiver, protocol, port)
        if denies:
            return False
        isolated |= closes
        allows |= lets
    return allows or not isolated


# Kubernetes NetworkPolicy


def _kubernetes(
    policy: Policy, subject: Peer, peer: Peer, direction: str, receiver: Peer, protocol: str, port: int
) -> tuple[bool, bool]:
    spec = policy.spec
    if subject.namespace != policy.namespace or not _selects(spec.get("podSelector") or {}, subject.labels):
        return False, False
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    if direction.capitalize() not in types:
        return False, False
    for rule in spec.get(direction) or []:
        peers = rule.get("from" if direction == "ingress" else "to")
        if peers and not any(_kubernetes_peer(policy, one, peer) for one in peers):
            continue
        ports = rule.get("ports")
        if ports and not any(_kubernetes_port(one, receiver, protocol, port) for one in ports):
            continue
        return True, True
    return True, False


def _kubernetes_peer(policy: Policy, one: Document, peer: Peer) -> bool:
    if "ipBlock" in one:
        return _in_block(one["ipBlock"], peer.address)
    if peer.kind != "pod":
        return False
    if "namespaceSelector" in one:
        if not _selects(one["namespaceSelector"], peer.namespace_labels):
            return False
    elif peer.namespace != policy.namespace:
        return False
    return _selects(one.get("podSelector") or {}, peer.labels)


def _kubernetes_port(one: Document, receiver: Peer, protocol: str, port: int) -> bool:
    if one.get("protocol", "TCP") != protocol:
        return False
    wanted = one.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return receiver.ports.get((wanted, protocol)) == port
    return bool(wanted <= port <= one.get("endPort", wanted))


# CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy


def _cilium(
    policy: Policy, subject: Peer, peer: Peer, direction: str, receiver: Peer, protocol: str, port: int
) -> tuple[bool, bool, bool]:
    spec = policy.spec
    if policy.namespace and subject.namespace != policy.namespace:
        return False, False, False
    selector = spec["endpointSelector"]
    if policy.namespace:
        selector = _without_namespace(selector)
    if not _cilium_selects(selector, subject):
        return False, False, False
    rules = spec.get(direction) or []
    denials = spec.get(direction + "Deny") or []
    lets = any(_cilium_rule(policy, r, peer, direction, receiver, protocol, port) for r in rules)
    denies = any(_cilium_rule(policy, r, peer, direction, receiver, protocol, port) for r in denials)
    return bool(rules or denials), lets, denies


def _cilium_rule(
    policy: Policy, rule: Document, peer: Peer, direction: str, receiver: Peer, protocol: str, port: int
) -> bool:
    prefix = "from" if direction == "ingress" else "to"
    ports = [one for block in rule.get("toPorts") or [] for one in block.get("ports") or []]
    if rule.get("toPorts") and not any(_cilium_port(one, receiver, protocol, port) for one in ports):
        return False
    if f"{prefix}Endpoints" in rule:
        return any(_cilium_endpoint(policy, one, peer) for one in rule[f"{prefix}Endpoints"])
    if f"{prefix}Entities" in rule:
        return any(_is_entity(one, peer) for one in rule[f"{prefix}Entities"])
    if f"{prefix}CIDR" in rule:
        return peer.kind == "world" and any(
            _in_block({"cidr": c}, peer.address) for c in rule[f"{prefix}CIDR"]
        )
    if f"{prefix}CIDRSet" in rule:
        return peer.kind == "world" and any(_in_block(b, peer.address) for b in rule[f"{prefix}CIDRSet"])
    return bool(rule.get("toPorts"))


def _cilium_endpoint(policy: Policy, selector: Document, peer: Peer) -> bool:
    if peer.kind != "pod":
        return False
    keys = list(selector.get("matchLabels") or {})
    keys += [expression["key"] for expression in selector.get("matchExpressions") or []]
    bare = [key.split(":", 1)[-1] for key in keys]
    about_namespaces = any(key.startswith("io.kubernetes.pod.namespace") for key in bare) or any(
        key.startswith("io.cilium.k8s.namespace.labels.") for key in bare
    )
    if policy.namespace and not about_namespaces and peer.namespace != policy.namespace:
        return False
    return _cilium_selects(selector, peer)


def _without_namespace(selector: Document) -> Document:
    """A policy of a namespace applies there alone: what its selector says of namespaces is void."""

    def other(key: str) -> bool:
        return key.split(":", 1)[-1] != "io.kubernetes.pod.namespace"

    return {
        "matchLabels": {k: v for k, v in (selector.get("matchLabels") or {}).items() if other(k)},
        "matchExpressions": [e for e in selector.get("matchExpressions") or [] if other(e["key"])],
    }


def _cilium_selects(selector: Document, pod: Peer) -> bool:
    labels = dict(pod.labels)
    labels["io.kubernetes.pod.namespace"] = pod.namespace
    labels["io.cilium.k8s.policy.serviceaccount"] = pod.service_account
    for key, value in pod.namespace_labels.items():
        labels["io.cilium.k8s.namespace.labels." + key] = value
    bare: dict[str, Any] = {
        "matchLabels": {k.split(":", 1)[-1]: v for k, v in (selector.get("matchLabels") or {}).items()},
        "matchExpressions": [
            {**expression, "key": expression["key"].split(":", 1)[-1]}
            for expression in selector.get("matchExpressions") or []
        ],
    }
    return _selects(bare, labels)


def _cilium_port(one: Document, receiver: Peer, protocol: str, port: int) -> bool:
    wanted_protocol = one.get("protocol", "ANY")
    if protocol not in (("TCP", "UDP", "SCTP") if wanted_protocol == "ANY" else (wanted_protocol,)):
        return False
    text = str(one["port"])
    if not text.isdecimal():
        return receiver.ports.get((text, protocol)) == port
    first = int(text)
    return first == 0 or first <= port <= (one.get("endPort") or first)


def _is_entity(entity: str, peer: Peer) -> bool:
    if entity == "all":
        return True
    if entity == "cluster":
        return peer.kind in ("pod", "host", "remote-node")
    return peer.kind == entity


# Both


def _in_block(block: Document, address: str) -> bool:
    one = ipaddress.ip_address(address)
    return one in ipaddress.ip_network(block["cidr"]) and not any(
        one in ipaddress.ip_network(hole) for hole in block.get("except") or []
    )


def _selects(selector: Document, labels: Mapping[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        value = labels.get(expression["key"])
        values = expression.get("values") or []
        holds = {
            "In": value is not None and value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]
        if not holds:
            return False
    return True

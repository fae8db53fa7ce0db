"""The labels that make a pod's identity, in Cilium's words.

All labels of the pod count, since a NetworkPolicy may select by any of them; those of its namespace and
its service account come under keys that no pod can set itself: a pod label that pretends to be one of
them is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from agent.model.objects import Labels, Namespace, Pod

SOURCE = "k8s:"
RANGE_SOURCE = "cidr:"
NAMESPACE_KEY = "k8s:io.kubernetes.pod.namespace"
NAMESPACE_LABEL_PREFIX = "k8s:io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT_KEY = "k8s:io.cilium.k8s.policy.serviceaccount"
CLUSTER_KEY = "k8s:io.cilium.k8s.policy.cluster"
CLUSTER_NAME = "default"
# Left out from the pod's own labels: these are ours to give.
_OURS = ("io.kubernetes.pod.namespace", "io.cilium.k8s.")


def is_forged(key: str) -> bool:
    """Whether a pod's own label would pass for one of ours."""
    return key.startswith(_OURS)


def forged(pod: Pod) -> list[str]:
    """The keys of the pod's labels that pretend to be ours."""
    return sorted(key for key in pod.labels if is_forged(key))


def address_labels(address: str, networks: Iterable[IPv4Network]) -> Labels:
    """Labels for those of `networks` that hold the address.

    A rule for an address range means some pods of the same labels and not others; where there is such a
    rule, this makes them different identities.
    """
    one = IPv4Address(address)
    return {f"{RANGE_SOURCE}{network}": "" for network in networks if one in network}


def identity_labels(pod: Pod, namespace: Namespace, extra: Labels | None = None) -> Labels:
    """What the pod's identity stands for: "k8s:key" -> value and `extra`, sorted by key."""
    found = {SOURCE + key: value for key, value in pod.labels.items() if not is_forged(key)}
    for key, value in namespace.labels.items():
        found[NAMESPACE_LABEL_PREFIX + key] = value
    found[NAMESPACE_KEY] = namespace.name
    found[SERVICE_ACCOUNT_KEY] = pod.service_account
    found[CLUSTER_KEY] = CLUSTER_NAME
    return dict(sorted({**found, **(extra or {})}.items()))

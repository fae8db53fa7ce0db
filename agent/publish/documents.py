"""The objects that the agent writes, as JSON. Pure."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from agent.endpoints import LocalEndpoint
from agent.model.faults import Fault
from agent.model.objects import Name, PolicySource

CILIUM = "/apis/cilium.io/v2"
COMPONENT = "underpass-agent"
_EVENT_LIMIT = 1000  # characters; the API takes 1024. A policy's status holds all of it.
_COLLECTIONS = {
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
}
_API_VERSIONS = {
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
}


def now() -> str:
    """The time as Kubernetes writes it, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def endpoint_path(name: Name) -> str:
    return f"{CILIUM}/namespaces/{name.namespace}/ciliumendpoints/{name.name}"


def endpoint_collection(name: Name) -> str:
    return f"{CILIUM}/namespaces/{name.namespace}/ciliumendpoints"


def endpoint_document(endpoint: LocalEndpoint, node: str, node_address: str) -> dict[str, Any]:
    """The CiliumEndpoint of a local endpoint. Its pod owns it, so that it goes with the pod at the latest."""
    attachment = endpoint.attachment
    owners = (
        [{"apiVersion": "v1", "kind": "Pod", "name": attachment.pod, "uid": attachment.pod_uid}]
        if attachment.pod_uid
        else []
    )
    labels = [f"{key}={value}" for key, value in (endpoint.labels or {}).items()]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumEndpoint",
        "metadata": {
            "name": attachment.pod,
            "namespace": attachment.namespace,
            "ownerReferences": owners,
        },
        "status": {
            "id": endpoint.id,
            "state": "ready",
            "external-identifiers": {
                "container-id": attachment.container,
                "cni-attachment-id": f"{attachment.container}:{attachment.interface}",
                "k8s-namespace": attachment.namespace,
                "k8s-pod-name": attachment.pod,
                "pod-name": f"{attachment.namespace}/{attachment.pod}",
            },
            "identity": {"id": endpoint.identity, "labels": labels},
            "networking": {"addressing": [{"ipv4": attachment.address}], "node": node_address},
            "named-ports": [
                {"name": name, "port": number, "protocol": str(protocol)}
                for name, protocol, number in endpoint.ports
            ],
        },
    }


def policy_path(kind: str, name: Name) -> str | None:
    """The path of the policy's status; None for a kind that has none."""
    collection = _COLLECTIONS.get(kind)
    if collection is None:
        return None
    where = f"/namespaces/{name.namespace}" if name.namespace else ""
    return f"{CILIUM}{where}/{collection}/{name.name}/status"


def policy_status(source: PolicySource, faults: Sequence[Fault], since: str) -> dict[str, Any]:
    """The merge patch of a policy's status: Cilium's condition Valid."""
    message = "; ".join(str(fault) for fault in faults) if faults else "Policy validation succeeded"
    return {
        "status": {
            "conditions": [
                {
                    "type": "Valid",
                    "status": "False" if faults else "True",
                    "lastTransitionTime": since,
                    "message": message,
                    "observedGeneration": source.generation,
                }
            ]
        }
    }


def same_condition(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the status that is there says what it should, whenever it was written."""
    there = (current.get("status") or {}).get("conditions") or []
    new = wanted["status"]["conditions"][0]
    return any(
        all(condition.get(key) == new[key] for key in ("type", "status", "message")) for condition in there
    )


def event_document(
    source: PolicySource, faults: Sequence[Fault], readable: bool, node: str
) -> tuple[str, dict[str, Any]]:
    """(path of the collection, event) for a policy that cannot be enforced as it is written.

    The name follows from the policy's version, so that all nodes write one event together.
    """
    effect = (
        "what it selects is closed in each direction that it has rules for"
        if readable
        else "it selects nothing and closes nothing"
    )
    message = f"not enforced as written ({effect}): " + "; ".join(str(fault) for fault in faults)
    digest = hashlib.sha256(f"{source.uid}/{source.generation}/{message}".encode()).hexdigest()[:16]
    namespace = source.name.namespace or "default"
    involved = {
        "apiVersion": _API_VERSIONS[source.kind],
        "kind": source.kind,
        "name": source.name.name,
        "uid": source.uid,
    }
    if source.name.namespace:
        involved["namespace"] = source.name.namespace
    reason = "PolicyNotSupported" if readable else "PolicyUnreadable"
    return _event(namespace, f"{source.name.name}.{digest}", involved, reason, message, node)


def table_event(node: str, table: str, fault: str) -> tuple[str, dict[str, Any]]:
    """(path of the collection, event) for a table of the node that does not take all that it should hold.

    The name holds the hour, so that it is told again while it lasts, and no more often.
    """
    message = (
        f"table {table} of the datapath cannot be written: {fault}. What does not fit is closed, not open; "
        "`underpass maps` on the node shows how full its tables are"
    )
    hour = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d%H")
    involved = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}
    return _event("default", f"{node}.table-{table}.{hour}", involved, "TableNotWritten", message, node)


def _event(
    namespace: str, name: str, involved: dict[str, str], reason: str, message: str, node: str
) -> tuple[str, dict[str, Any]]:
    time = now()
    return f"/api/v1/namespaces/{namespace}/events", {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "reason": reason,
        "message": message if len(message) <= _EVENT_LIMIT else f"{message[: _EVENT_LIMIT - 4]} ...",
        "type": "Warning",
        "source": {"component": COMPONENT, "host": node},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }

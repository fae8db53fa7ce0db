"""Kubernetes objects (JSON) as model values. Each function takes one object and reads what is needed."""

from __future__ import annotations

from typing import Any

from agent.model.objects import (
    INJECTED_MARK,
    ContainerPort,
    Endpoint,
    EndpointSlice,
    Identity,
    Name,
    Namespace,
    Node,
    Pod,
    PolicySource,
    Protocol,
    Service,
    ServicePort,
    SliceEndpoint,
)

Item = dict[str, Any]
DEFAULT_AFFINITY_SECONDS = 10800
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
# Annotations that the agent reads: these, and those under its own prefix.
OWN_ANNOTATIONS = "underpass.dev/"
UNUSED_MARK = "underpass.dev/unused-since"
# A Service with this label is another proxy's business (as for kube-proxy).
OTHER_PROXY_LABEL = "service.kubernetes.io/service-proxy-name"


def name_of(item: Item) -> Name:
    metadata = item["metadata"]
    return Name(metadata.get("namespace") or "", metadata["name"])


def labels_of(item: Item) -> dict[str, str]:
    return dict(item["metadata"].get("labels") or {})


def annotations_of(item: Item) -> dict[str, str]:
    """The annotations that the agent reads."""
    annotations = item["metadata"].get("annotations") or {}
    return {
        name: value
        for name, value in annotations.items()
        if name == INJECTED_MARK or name.startswith(OWN_ANNOTATIONS)
    }


def namespace(item: Item) -> Namespace:
    return Namespace(item["metadata"]["name"], labels_of(item))


def node(item: Item) -> Node:
    status, spec = item.get("status") or {}, item.get("spec") or {}
    addresses = tuple(
        entry["address"] for entry in status.get("addresses") or [] if entry.get("type") == "InternalIP"
    )
    ranges = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    metadata = item["metadata"]
    return Node(metadata["name"], metadata.get("uid") or "", addresses, tuple(ranges), labels_of(item))


def pod(item: Item) -> Pod:
    spec, status = item["spec"], item.get("status") or {}
    sidecars = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    ports = tuple(
        ContainerPort(
            name=port.get("name") or "",
            protocol=Protocol(port.get("protocol") or "TCP"),
            number=port["containerPort"],
            host_port=port.get("hostPort") or 0,
            host_address=port.get("hostIP") or "",
        )
        for container in (*sidecars, *(spec.get("containers") or []))
        for port in container.get("ports") or []
    )
    addresses = tuple(entry["ip"] for entry in status.get("podIPs") or [] if entry.get("ip"))
    return Pod(
        name=name_of(item),
        uid=item["metadata"]["uid"],
        node=spec.get("nodeName") or "",
        labels=labels_of(item),
        service_account=spec.get("serviceAccountName") or "default",
        addresses=addresses,
        ports=ports,
        host_network=bool(spec.get("hostNetwork")),
        finished=status.get("phase") in ("Succeeded", "Failed"),
        annotations=annotations_of(item),
    )


def service(item: Item) -> Service | None:
    spec = item["spec"]
    kind = spec.get("type") or "ClusterIP"
    if kind == "ExternalName" or OTHER_PROXY_LABEL in labels_of(item):
        return None
    addresses = tuple(a for a in spec.get("clusterIPs") or [spec.get("clusterIP")] if a and a != "None")
    balancers = ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    # In mode Proxy, the balancer itself wants to see the traffic.
    direct = [b["ip"] for b in balancers if b.get("ip") and b.get("ipMode") != "Proxy"]
    external = [*(spec.get("externalIPs") or []), *direct]
    affinity = 0
    if spec.get("sessionAffinity") == "ClientIP":
        config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        affinity = config.get("timeoutSeconds") or DEFAULT_AFFINITY_SECONDS
    return Service(
        name=name_of(item),
        kind=kind,
        addresses=addresses,
        ports=tuple(
            ServicePort(
                name=port.get("name") or "",
                protocol=Protocol(port.get("protocol") or "TCP"),
                number=port["port"],
                node_port=port.get("nodePort") or 0,
            )
            for port in spec.get("ports") or []
        ),
        external_addresses=tuple(dict.fromkeys(external)),
        affinity=affinity,
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_local=spec.get("externalTrafficPolicy") == "Local",
        health_check_port=spec.get("healthCheckNodePort") or 0,
    )


def endpoint_slice(item: Item) -> EndpointSlice | None:
    owner = labels_of(item).get(SERVICE_NAME_LABEL)
    if not owner or item.get("addressType") == "FQDN":
        return None
    name = name_of(item)
    return EndpointSlice(
        name=name,
        service=Name(name.namespace, owner),
        ports=tuple(
            (port.get("name") or "", Protocol(port.get("protocol") or "TCP"), port["port"])
            for port in item.get("ports") or []
            if port.get("port")
        ),
        endpoints=tuple(_slice_endpoint(entry) for entry in item.get("endpoints") or []),
    )


def _slice_endpoint(entry: Item) -> SliceEndpoint:
    """Conditions default as the API says: unknown ready means ready, serving follows ready."""
    conditions = entry.get("conditions") or {}
    ready = conditions.get("ready")
    ready = True if ready is None else bool(ready)
    serving = conditions.get("serving")
    return SliceEndpoint(
        addresses=tuple(entry.get("addresses") or []),
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        node=entry.get("nodeName") or "",
    )


def identity(item: Item) -> Identity | None:
    """A CiliumIdentity. One whose name is no number of ours is not an identity."""
    name = item["metadata"]["name"]
    if not name.isdecimal():
        return None
    marked = UNUSED_MARK in (item["metadata"].get("annotations") or {})
    return Identity(int(name), dict(item.get("security-labels") or {}), marked)


def endpoint(item: Item) -> Endpoint | None:
    """A CiliumEndpoint. One without identity or address is not there yet."""
    status = item.get("status") or {}
    number = (status.get("identity") or {}).get("id")
    networking = status.get("networking") or {}
    addresses = tuple(entry["ipv4"] for entry in networking.get("addressing") or [] if entry.get("ipv4"))
    if not number or not addresses or not networking.get("node"):
        return None
    owners = item["metadata"].get("ownerReferences") or []
    return Endpoint(
        name=name_of(item),
        uid=next((o["uid"] for o in owners if o.get("kind") == "Pod"), ""),
        identity=int(number),
        addresses=addresses,
        node_address=networking["node"],
        named_ports=tuple(
            (port["name"], Protocol(port["protocol"]), port["port"])
            for port in status.get("named-ports") or []
        ),
    )


def policy(kind: str, item: Item) -> PolicySource:
    """A policy of any kind: only the parts that hold rules, so that a status change is no change."""
    metadata = item["metadata"]
    return PolicySource(
        kind=kind,
        name=name_of(item),
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        document={part: item[part] for part in ("spec", "specs") if part in item},
    )

"""Where a Service of the lab can be opened from this machine."""

from __future__ import annotations

import json
from typing import Any

from lab.cluster import Cluster
from lab.errors import ExitCode, die
from lab.render import Rendered


def urls(lab: Rendered, cluster: Cluster, name: str) -> list[str]:
    """The URLs of the Service `NAMESPACE/NAME`, one for each of its TCP ports that nodes serve."""
    namespace, slash, service = name.partition("/")
    if not slash or not namespace or not service:
        die(f"{name} is not NAMESPACE/SERVICE", hint="for example default/web")
    found = _ask(cluster, "service", service, "-n", namespace)
    if not found:
        die(
            f"there is no Service {service} in namespace {namespace}",
            hint="`lab kubectl get services -A` lists them",
            code=ExitCode.NOT_THERE,
        )
    spec: dict[str, Any] = found["spec"]
    ports = [port for port in spec["ports"] if port.get("nodePort") and port.get("protocol", "TCP") == "TCP"]
    if not ports:
        patch = '{"spec":{"type":"NodePort"}}'
        die(
            f"nodes do not serve {name}: it is a {spec['type']} Service",
            hint=f"`lab kubectl patch service {service} -n {namespace} -p '{patch}'` makes it a NodePort",
            code=ExitCode.NOT_THERE,
        )
    nodes = {node.name: node.address for node in lab.nodes}
    if spec.get("externalTrafficPolicy") == "Local":  # then only nodes that run a backend answer
        at = _places(cluster, service, namespace)
        nodes = {name: address for name, address in nodes.items() if name in at}
        if not nodes:
            die(f"no pod of {name} is ready, and it serves local pods alone", code=ExitCode.NOT_THERE)
    address = next(iter(nodes.values()))
    return [f"{_scheme(port)}://{address}:{port['nodePort']}/" for port in ports]


def _scheme(port: dict[str, Any]) -> str:
    said = port.get("appProtocol") or port.get("name") or ""
    return "https" if port["port"] == 443 or said.startswith("https") else "http"


def _places(cluster: Cluster, service: str, namespace: str) -> set[str]:
    """The nodes that run a ready backend."""
    slices = _ask(cluster, "endpointslices", "-l", f"kubernetes.io/service-name={service}", "-n", namespace)
    return {
        endpoint["nodeName"]
        for item in slices["items"]
        for endpoint in item.get("endpoints") or []
        if endpoint.get("conditions", {}).get("ready") and "nodeName" in endpoint
    }


def _ask(cluster: Cluster, kind: str, *arguments: str) -> dict[str, Any]:
    done = cluster.kubectl("get", kind, *arguments, "-o", "json", "--ignore-not-found")
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer

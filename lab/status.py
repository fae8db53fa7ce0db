"""What a lab is doing now, found out by asking the provider, the nodes and the API server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lab import builds, ssh
from lab.cluster import Cluster, KubeNode
from lab.errors import LabError
from lab.providers import provider
from lab.providers.base import NodeState
from lab.render import Rendered, RenderedNode


@dataclass(frozen=True)
class NodeStatus:
    """One node: its power state, whether ssh answers, what Kubernetes and systemd say of it."""

    name: str
    roles: tuple[str, ...]
    address: str
    state: str
    ssh: bool
    ready: bool | None
    reason: str | None
    failed_units: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "roles": list(self.roles), "failed_units": list(self.failed_units)}


@dataclass(frozen=True)
class LabStatus:
    """A lab as it is now. `api` is `ok` or what is wrong with the API server."""

    lab: Rendered
    api: str
    nodes: tuple[NodeStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.lab.id,
            "provider": self.lab.provider,
            "api": self.api,
            "nodes": [node.to_dict() for node in self.nodes],
        }

    def summary(self) -> dict[str, Any]:
        """One line of `lab status --all`."""
        running = sum(node.state == NodeState.RUNNING for node in self.nodes)
        return {
            "id": self.lab.id,
            "provider": self.lab.provider,
            "nodes": len(self.nodes),
            "running": running,
            "api": self.api,
        }


def status_of(lab: Rendered) -> LabStatus:
    """Ask everybody once; nothing here fails because a part of the lab is down."""
    host = provider(lab)
    api, kube = _kubernetes(lab)

    def ask(node: RenderedNode) -> NodeStatus:
        state = host.status(node)
        reachable = state is NodeState.RUNNING and ssh.answers(lab, node)
        seen = kube.get(node.name)
        return NodeStatus(
            name=node.name,
            roles=node.roles,
            address=node.address,
            state=state.value,
            ssh=reachable,
            ready=seen.ready if seen else None,
            reason=seen.reason if seen else None,
            failed_units=_failed_units(lab, node) if reachable else (),
        )

    with ThreadPoolExecutor(len(lab.nodes)) as pool:
        return LabStatus(lab, api, tuple(pool.map(ask, lab.nodes)))


def _kubernetes(lab: Rendered) -> tuple[str, dict[str, KubeNode]]:
    artifact = builds.locate().get("kubernetes")
    if artifact is None:
        return "unknown: no kubectl in the artifact store", {}
    cluster = Cluster(lab, artifact.path / "bin")
    try:
        health = cluster.health()
        nodes = cluster.nodes() if health == "ok" else []
    except LabError as fault:
        return fault.message, {}
    return health, {node.name: node for node in nodes}


def _failed_units(lab: Rendered, node: RenderedNode) -> tuple[str, ...]:
    command = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"]
    done = ssh.on_node(lab, node, command, ok=range(256), timeout=15)
    return tuple(line.split()[0] for line in done.stdout.splitlines() if line.strip())

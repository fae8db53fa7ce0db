"""What the planes have said so far: the model of the cluster as one node keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.model.objects import (
    Endpoint,
    EndpointSlice,
    Name,
    Namespace,
    Node,
    Pod,
    PolicySource,
    Service,
)


@dataclass
class Cluster:
    """The last known values by key, with the few indices that changes need. Of the engine's thread alone."""

    namespaces: dict[str, Namespace] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    slices: dict[str, EndpointSlice] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    policies: dict[tuple[str, str], PolicySource] = field(default_factory=dict)
    slices_of: dict[str, dict[str, EndpointSlice]] = field(default_factory=dict)

    def put_slice(self, key: str, value: EndpointSlice | None) -> set[str]:
        """Take in a slice; returns the keys of the Services that it concerns."""
        concerned: set[str] = set()
        before = self.slices.pop(key, None)
        if before is not None:
            owner = str(before.service)
            concerned.add(owner)
            held = self.slices_of[owner]
            del held[key]
            if not held:
                del self.slices_of[owner]
        if value is not None:
            self.slices[key] = value
            owner = str(value.service)
            concerned.add(owner)
            self.slices_of.setdefault(owner, {})[key] = value
        return concerned

    def pod(self, name: Name, uid: str = "") -> Pod | None:
        """The pod of that name; with `uid`, only if it is that very pod."""
        pod = self.pods.get(str(name))
        return pod if pod is not None and uid in ("", pod.uid) else None


def put(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Set the key, or with None remove it."""
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value

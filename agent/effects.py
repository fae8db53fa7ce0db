"""What the engine needs to know of its node, and what it sets off outside of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from agent.endpoints import LocalEndpoint
from agent.model.objects import Endpoint, Labels, Node, PolicySource
from agent.policy.rules import Parsed
from agent.services.health import Health


class NotReadyError(Exception):
    """The agent does not know enough of the cluster yet, or its tables cannot be written."""


@dataclass(frozen=True)
class Settings:
    """What the engine must know of its node and lab."""

    node: str
    pods_range: str
    services_range: str


class Effects(Protocol):
    """What follows outside of the tables. Called on the engine's thread: must not wait for anything."""

    def nodes_changed(self, own: Node, others: Sequence[Node]) -> None: ...

    def endpoint_changed(self, endpoint: LocalEndpoint) -> None: ...

    def endpoint_gone(self, endpoint: LocalEndpoint) -> None: ...

    def endpoint_seen(self, key: str, endpoint: Endpoint | None) -> None: ...

    def identity_wanted(self, endpoint: LocalEndpoint, labels: Labels) -> None: ...

    def policy_read(self, source: PolicySource, parsed: Parsed) -> None: ...

    def policies_moved(self, endpoints: set[int]) -> None: ...

    def identities_moved(self, peers: Mapping[IPv4Address, int]) -> None: ...

    def table_failed(self, table: str, fault: str) -> None: ...

    def health_changed(self, ports: Mapping[int, Health]) -> None: ...

"""The one form that policies of every kind are read into.

A policy selects subjects by their identity labels, isolates them in some directions, and holds rules.
Traffic of an isolated subject passes when some rule allows it and no rule denies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

from agent.model.labels import Selector
from agent.model.objects import Name, Protocol


class Direction(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


class Entity(StrEnum):
    """Peers that Cilium names. CLUSTER and ALL are sets of others."""

    ALL = "all"
    CLUSTER = "cluster"
    WORLD = "world"
    WORLD_IPV4 = "world-ipv4"
    WORLD_IPV6 = "world-ipv6"
    HOST = "host"
    REMOTE_NODE = "remote-node"
    KUBE_APISERVER = "kube-apiserver"
    HEALTH = "health"
    INIT = "init"
    UNMANAGED = "unmanaged"
    INGRESS = "ingress"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SelectedPeers:
    """All identities whose labels the selector matches."""

    selector: Selector


@dataclass(frozen=True, slots=True)
class EntityPeers:
    entity: Entity


@dataclass(frozen=True, slots=True)
class AddressPeers:
    """Addresses of `network` but not of `excepts`.

    With `everybody` they count whoever holds them (a NetworkPolicy's ipBlock); without, pods and nodes
    never match (CiliumNetworkPolicy's CIDR rules).
    """

    network: IPv4Network
    excepts: tuple[IPv4Network, ...]
    everybody: bool


Peer = SelectedPeers | EntityPeers | AddressPeers


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first` to `last` of a protocol; 0 to 65535 for all of them. ANY is TCP, UDP and SCTP.

    With `name`, the numbers come from the receiver's container ports of that name.
    """

    protocol: Protocol
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Peers and ports that are allowed, or denied.

    `peers` None is anybody, an empty tuple is nobody. `ports` None is everything, whatever the
    protocol; an empty tuple is nothing. `path` is where in the policy the rule stands.
    """

    direction: Direction
    peers: tuple[Peer, ...] | None
    ports: tuple[PortRange, ...] | None
    deny: bool
    path: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A part of a policy that is not supported or not readable."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it is enforced. One that has faults holds no rules, only what it isolates.

    `namespace` limits the subjects ("" for all), `part` tells the parts of a `specs` list apart.
    """

    kind: str
    name: Name
    part: int
    subjects: Selector
    isolates: frozenset[Direction]
    rules: tuple[Rule, ...]

    @property
    def id(self) -> str:
        """A stable name of this policy for people and for rule ids."""
        suffix = f"#{self.part}" if self.part else ""
        return f"{self.kind}:{self.name}{suffix}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What became of a policy resource: the policies to enforce, and what was wrong with it."""

    policies: tuple[Policy, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def valid(self) -> bool:
        return not self.faults


class FieldError(ValueError):
    """A field that cannot be enforced. `path` is complete from the policy's root."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.fault = Fault(path, reason)


def known_fields(document: object, known: Sequence[str], path: str) -> dict[str, object]:
    """`document` as an object without fields other than `known`. Raises FieldError for the first."""
    if not isinstance(document, dict):
        raise FieldError(path, "must be an object")
    for name, value in document.items():
        if name not in known and value not in (None, [], {}):
            raise FieldError(f"{path}.{name}", "field is not supported")
    return document


def list_at(document: dict[str, object], name: str, path: str) -> list[object] | None:
    """The list in field `name`; None where the field is absent. Raises FieldError."""
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise FieldError(f"{path}.{name}", "must be a list")
    return value


def network_at(text: object, path: str) -> IPv4Network | None:
    """An IPv4 network; None for an IPv6 one, which no address here can match. Raises FieldError."""
    import ipaddress

    try:
        network = ipaddress.ip_network(text if isinstance(text, str) else "", strict=False)
    except ValueError as fault:
        raise FieldError(path, f"not an address range: {text!r}") from fault
    return network if isinstance(network, IPv4Network) else None

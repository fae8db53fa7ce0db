"""The one form that policies of every kind are read into.

A policy selects subjects by their identity labels, isolates them in some directions, and holds rules.
Traffic of an isolated subject passes when some rule allows it and no rule denies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, ip_network

from agent.model.faults import Fault, known_fields, list_at
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


def network_at(text: object, path: str, faults: list[Fault]) -> IPv4Network | None:
    """An IPv4 network; None for an IPv6 one, which no address here can match, and for a fault."""
    try:
        network = ip_network(text if isinstance(text, str) else "", strict=False)
    except ValueError:
        faults.append(Fault(path, f"not an address range: {text!r}"))
        return None
    return network if isinstance(network, IPv4Network) else None


def block_at(document: object, path: str, *, everybody: bool, faults: list[Fault]) -> list[Peer]:
    """The peers of a `cidr` with `except`; none for a block of IPv6 addresses, and for a fault."""
    before = len(faults)
    fields = known_fields(document, ("cidr", "except"), path, faults)
    if len(faults) > before and "cidr" not in fields:
        return []  # what stands in its place has been told
    network = network_at(fields.get("cidr"), f"{path}.cidr", faults)
    excepts = [
        network_at(text, f"{path}.except[{index}]", faults)
        for index, text in enumerate(list_at(fields, "except", path, faults) or [])
    ]
    if network is None:
        return []
    return [AddressPeers(network, tuple(e for e in excepts if e is not None), everybody)]

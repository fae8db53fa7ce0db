"""Frozen values for the things of a cluster that the network cares for.

They carry only what is read somewhere: a full Kubernetes object is ten to fifty times their size.
Labels are plain mappings by convention never changed after construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Labels = Mapping[str, str]


class Protocol(StrEnum):
    """Transport protocols that Kubernetes knows, plus those that CiliumNetworkPolicy adds."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"
    ICMP = "ICMP"
    ICMPV6 = "ICMPv6"
    ANY = "ANY"

    @property
    def number(self) -> int:
        """The IANA protocol number; 0 for ANY."""
        return _NUMBERS[self]


_NUMBERS = {
    Protocol.TCP: 6,
    Protocol.UDP: 17,
    Protocol.SCTP: 132,
    Protocol.ICMP: 1,
    Protocol.ICMPV6: 58,
    Protocol.ANY: 0,
}


@dataclass(frozen=True, slots=True)
class Name:
    """Namespace and name of an object; the namespace of a cluster-wide object is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container declares. `host_port` is 0 where it asks for none."""

    name: str
    protocol: Protocol
    number: int
    host_port: int = 0
    host_address: str = ""


#: The annotation that Istio's injector writes into a pod that it gave a sidecar.
INJECTED_MARK = "sidecar.istio.io/status"
#: The annotation by which a pod opts out of socket redirect: "disabled".
REDIRECT_ANNOTATION = "underpass.dev/redirect"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of this node. `finished` pods (Succeeded, Failed) have given up their addresses.

    Of its annotations, those that the agent reads.
    """

    name: Name
    uid: str
    node: str
    labels: Labels
    service_account: str
    addresses: tuple[str, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    host_network: bool = False
    finished: bool = False
    annotations: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """A node. `addresses` are its internal ones, the first is the one that others use."""

    name: str
    uid: str
    addresses: tuple[str, ...]
    pod_ranges: tuple[str, ...]
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service. `node_port` is 0 where there is none."""

    name: str
    protocol: Protocol
    number: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A Service. `affinity` is the ClientIP affinity's time-out in seconds, 0 for none.

    `addresses` are the cluster addresses (none for a headless Service), `external_addresses` those of
    load balancers and externalIPs.
    """

    name: Name
    kind: str
    addresses: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    external_addresses: tuple[str, ...] = ()
    affinity: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_port: int = 0


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of an EndpointSlice with the conditions as Kubernetes defines them."""

    addresses: tuple[str, ...]
    ready: bool
    serving: bool
    terminating: bool
    node: str


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """`ports` holds (port name, protocol, number); a slice with no ports sends nothing anywhere."""

    name: Name
    service: Name
    ports: tuple[tuple[str, Protocol, int], ...]
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """A security identity: its number and the labels it stands for ("k8s:key" -> value).

    `marked` identities will be deleted unless somebody takes them into use.
    """

    number: int
    labels: Labels
    marked: bool = False

    def __hash__(self) -> int:
        return hash(self.number)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod as the network sees it, anywhere in the cluster (the content of a CiliumEndpoint).

    `named_ports` maps a port's name to the protocols and numbers that it stands for in this pod.
    """

    name: Name
    uid: str
    identity: int
    addresses: tuple[str, ...]
    node_address: str
    named_ports: tuple[tuple[str, Protocol, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy resource as it was read: the kind, and its parts that the policy room parses itself."""

    kind: str
    name: Name
    uid: str
    generation: int
    document: Mapping[str, object]

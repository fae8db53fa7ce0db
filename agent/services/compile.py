"""Services as frontends with their backends. Pure, one Service at a time.

Which endpoints serve follows kube-proxy: the ready ones, or, where there is none, those that still serve
while they terminate; with a Local policy only those of this node.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from agent.model.objects import EndpointSlice, Pod, Protocol, Service, ServicePort, SliceEndpoint
from datapath.constants import Scope, ServiceFlag
from datapath.tables import ServiceKey

_ANY_NODE = ipaddress.IPv6Address(0)
_BALANCED = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """Where connections go: an IPv4 address and a port."""

    address: ipaddress.IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Frontend:
    """What one `ServiceKey` stands for.

    `affinity` is the id under which clients are remembered, 0 for none; `flags` are ServiceFlag's bits.
    `backends` are sorted, so that equal sets are equal values.
    """

    owner: str
    backends: tuple[Backend, ...]
    affinity: int = 0
    affinity_seconds: int = 0
    flags: int = 0


Frontends = dict[ServiceKey, Frontend]


def stable_number(text: str) -> int:
    """A number of 32 bits that follows from `text` alone, never 0."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) or 1


@functools.lru_cache(maxsize=65536)
def backend_number(backend: Backend, protocol: int) -> int:
    """The id by which affinity knows the backend."""
    return stable_number(f"{backend.address}:{backend.port}/{protocol}")


def compile_service(service: Service, slices: Iterable[EndpointSlice], node: str) -> Frontends:
    """The frontends of `service` on the node called `node`."""
    found: Frontends = {}
    slices = tuple(slices)
    for port in service.ports:
        if port.protocol in _BALANCED:
            found.update(_compile_port(service, port, slices, node))
    return found


def _compile_port(
    service: Service, port: ServicePort, slices: tuple[EndpointSlice, ...], node: str
) -> Frontends:
    everywhere = _backends(slices, port, None)
    local = _backends(slices, port, node) if service.internal_local or service.external_local else ()
    owner = f"{service.name}:{port.number}/{port.protocol}"
    affinity = stable_number(owner) if service.affinity else 0
    flags = int(ServiceFlag.AFFINITY) if service.affinity else 0

    def frontend(backends: tuple[Backend, ...], more: int = 0) -> Frontend:
        return Frontend(owner, backends, affinity, service.affinity, flags | more)

    inside = frontend(everywhere)
    # In the cluster an external address is a short way to all endpoints, whatever the external policy.
    outside = inside
    if service.external_local:
        silent = int(ServiceFlag.DROP_IF_EMPTY) if everywhere else 0
        outside = frontend(local, int(ServiceFlag.KEEP_SOURCE) | silent)

    def key(address: ipaddress.IPv4Address | ipaddress.IPv6Address, number: int, scope: Scope) -> ServiceKey:
        return ServiceKey(address=address, port=number, protocol=port.protocol.number, scope=int(scope))

    found: Frontends = {}
    for address in _ipv4(service.addresses):
        found[key(address, port.number, Scope.CLUSTER)] = (
            frontend(local) if service.internal_local else inside
        )
    for address in _ipv4(service.external_addresses):
        found[key(address, port.number, Scope.CLUSTER)] = inside
        found[key(address, port.number, Scope.EXTERNAL)] = outside
    if port.node_port:
        found[key(_ANY_NODE, port.node_port, Scope.CLUSTER)] = inside
        found[key(_ANY_NODE, port.node_port, Scope.EXTERNAL)] = outside
    return found


def compile_host_ports(pod: Pod, address: str, node_addresses: Iterable[str]) -> Frontends:
    """The frontends of the hostPorts of a pod of this node that has `address`.

    A port bound to a loopback address of the host is left out: the table has no notion of whose loopback.
    """
    found: Frontends = {}
    own = _ipv4(node_addresses)
    for port in pod.ports:
        if not port.host_port or port.protocol not in _BALANCED:
            continue
        asked = _ipv4([port.host_address]) if port.host_address else ()
        everywhere = not port.host_address or any(a.is_unspecified for a in asked)
        backend = Backend(ipaddress.IPv4Address(address), port.number)
        frontend = Frontend(
            f"{pod.name}:{port.number}/{port.protocol}", (backend,), flags=int(ServiceFlag.KEEP_SOURCE)
        )
        for where in own if everywhere else tuple(a for a in asked if a in own):
            for scope in Scope:
                key = ServiceKey(
                    address=where, port=port.host_port, protocol=port.protocol.number, scope=int(scope)
                )
                found[key] = frontend
    return found


def _backends(slices: tuple[EndpointSlice, ...], port: ServicePort, node: str | None) -> tuple[Backend, ...]:
    """Who serves `port`: the ready, else those that serve while terminating. With `node`, only its own."""
    ready: set[Backend] = set()
    leaving: set[Backend] = set()
    for one in slices:
        numbers = [n for name, protocol, n in one.ports if name == port.name and protocol == port.protocol]
        for number in numbers:
            for endpoint in one.endpoints:
                if node is not None and endpoint.node != node:
                    continue
                into = _where(endpoint, ready, leaving)
                if into is not None:
                    into.update(Backend(address, number) for address in _ipv4(endpoint.addresses))
    return tuple(sorted(ready or leaving))


def _where(endpoint: SliceEndpoint, ready: set[Backend], leaving: set[Backend]) -> set[Backend] | None:
    if endpoint.ready:
        return ready
    return leaving if endpoint.serving and endpoint.terminating else None


def _ipv4(texts: Iterable[str]) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses among `texts`."""
    found = (_parse(text) for text in texts)
    return tuple(address for address in found if isinstance(address, ipaddress.IPv4Address))


@functools.lru_cache(maxsize=65536)
def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None

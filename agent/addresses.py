"""Who has which address and where it lives: nodes and pods as entries of `ipcache` and `nodes`. Pure."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from agent.ipam import router_address
from agent.model.objects import Endpoint, Node
from agent.services.compile import stable_number
from datapath.codec import UNSPECIFIED
from datapath.constants import CacheFlag, Identity, NodeFlag
from datapath.tables import AddressKey, CacheEntry, PrefixKey
from datapath.tables import Node as NodeEntry

Cache = dict[PrefixKey, CacheEntry]
Nodes = dict[AddressKey, NodeEntry]
_MAPPED_BITS = 96


@functools.lru_cache(maxsize=65536)
def ipv4(text: str) -> ipaddress.IPv4Address | None:
    """The IPv4 address of `text`; None for whatever else."""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        return None


def prefix_key(network: ipaddress.IPv4Network) -> PrefixKey:
    return PrefixKey(prefix=_MAPPED_BITS + network.prefixlen, address=network.network_address)


def host_key(address: ipaddress.IPv4Address) -> PrefixKey:
    return PrefixKey(prefix=_MAPPED_BITS + 32, address=address)


def pod_ranges(node: Node) -> tuple[ipaddress.IPv4Network, ...]:
    """The IPv4 pod ranges of a node."""
    networks = (ipaddress.ip_network(text) for text in node.pod_ranges)
    return tuple(network for network in networks if isinstance(network, ipaddress.IPv4Network))


def underlay(node: Node) -> ipaddress.IPv4Address | None:
    """The address that other nodes tunnel to."""
    return next((address for text in node.addresses if (address := ipv4(text))), None)


def compile_node(node: Node, own: bool) -> tuple[Cache, Nodes]:
    """The entries of one node; `own` for the node that this agent runs on."""
    first = underlay(node)
    if first is None:
        return {}, {}
    identity = int(Identity.HOST if own else Identity.REMOTE_NODE)
    tunnel = UNSPECIFIED if own else first
    flags = int(NodeFlag.LOCAL) if own else 0
    number = stable_number(node.uid or node.name)
    cache: Cache = {}
    nodes: Nodes = {}
    addresses = [a for text in node.addresses if (a := ipv4(text))]
    for network in pod_ranges(node):
        addresses.append(ipaddress.IPv4Address(router_address(network)))
        if not own:
            cache[prefix_key(network)] = CacheEntry(
                tunnel=first, identity=int(Identity.UNKNOWN), flags=int(CacheFlag.RANGE)
            )
    for address in addresses:
        cache[host_key(address)] = CacheEntry(tunnel=tunnel, identity=identity)
        nodes[AddressKey(address=address)] = NodeEntry(id=number, flags=flags)
    return cache, nodes


def compile_endpoint(endpoint: Endpoint, own_node: str) -> Cache:
    """The entries of a pod of another node; none for those of `own_node`, which the agent itself knows."""
    tunnel = ipv4(endpoint.node_address)
    if tunnel is None or endpoint.node_address == own_node:
        return {}
    return {
        host_key(address): CacheEntry(tunnel=tunnel, identity=endpoint.identity)
        for text in endpoint.addresses
        if (address := ipv4(text))
    }


def compile_ranges(service_ranges: Iterable[str]) -> Cache:
    """The entries of the addresses that only Services have."""
    networks = (ipaddress.ip_network(text) for text in service_ranges)
    return {
        prefix_key(network): CacheEntry(identity=int(Identity.WORLD), flags=int(CacheFlag.SERVICE))
        for network in networks
        if isinstance(network, ipaddress.IPv4Network)
    }

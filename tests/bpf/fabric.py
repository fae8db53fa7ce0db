"""A cluster of namespaces: a switch, nodes on it, pods on the nodes, and a client outside."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from datapath import links, tables
from datapath.codec import UNSPECIFIED, Address
from datapath.constants import ANY_IDENTITY, CacheFlag, Direction, Identity, NamespaceFlag, NodeFlag, Verdict
from tests.bpf.namespaces import Namespace
from tests.bpf.sandbox import GATEWAY, POD_RANGE, Node, Sandbox

ALLOW = tables.PolicyEntry(verdict=Verdict.ALLOW)
DENY = tables.PolicyEntry(verdict=Verdict.DENY)
_ids = itertools.count(1)


def any_key(direction: Direction, identity: int = ANY_IDENTITY) -> tables.PolicyKey:
    """Every protocol and port of one identity, or of all."""
    return tables.PolicyKey(prefix=40, identity=identity, direction=direction)


def port_key(
    direction: Direction, protocol: int, port: int, identity: int = ANY_IDENTITY
) -> tables.PolicyKey:
    """One port."""
    return tables.PolicyKey(prefix=64, identity=identity, direction=direction, protocol=protocol, port=port)


OPEN = {any_key(Direction.INGRESS): ALLOW, any_key(Direction.EGRESS): ALLOW}


def host_prefix(address: Address) -> tables.PrefixKey:
    """The key of one address in `ipcache`."""
    return tables.PrefixKey(prefix=128, address=address)


def network_prefix(network: ipaddress.IPv4Network) -> tables.PrefixKey:
    """The key of a range in `ipcache`."""
    return tables.PrefixKey(prefix=96 + network.prefixlen, address=network.network_address)


class Switch:
    """A bridge in a namespace of its own."""

    def __init__(self) -> None:
        self.namespace = Namespace.make()
        self._ports = itertools.count(1)
        with self.namespace.netlink() as netlink:
            netlink.link("add", ifname="bridge", kind="bridge")
            self._bridge = netlink.link_lookup(ifname="bridge")[0]
            netlink.link("set", index=self._bridge, state="up")

    def plug(self, namespace: Namespace, address: ipaddress.IPv4Address) -> None:
        """Give a namespace an `eth0` with an address on the bridge."""
        port = f"port{next(self._ports)}"
        with self.namespace.netlink() as netlink:
            netlink.link(
                "add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": namespace.descriptor}
            )
            index = netlink.link_lookup(ifname=port)[0]
            netlink.link("set", index=index, master=self._bridge, state="up")
        with namespace.netlink() as netlink:
            index = netlink.link_lookup(ifname="eth0")[0]
            netlink.addr("add", index=index, address=str(address), prefixlen=24)
            netlink.link("set", index=index, state="up")


class Pod:
    """A pod: namespace, veth, endpoint, identity and policy, written in the order that the agent uses."""

    def __init__(
        self, node: Node, identity: int, policy: Mapping[tables.PolicyKey, tables.PolicyEntry]
    ) -> None:
        self.node = node
        self.identity = identity
        self.id = next(_ids)
        self.address = node.pod_range.network_address + 10 + self.id
        self.namespace = Namespace.make()
        self.device = f"pod{self.id}"
        self.mac = bytes([2, 0, 0, 0, self.id >> 8, self.id & 0xFF])
        text = ":".join(f"{byte:02x}" for byte in self.mac)
        with node.namespace.netlink() as netlink:
            peer = {"ifname": "eth0", "net_ns_fd": self.namespace.descriptor, "address": text, "mtu": 1450}
            netlink.link("add", ifname=self.device, kind="veth", mtu=1450, peer=peer)
            self.index: int = netlink.link_lookup(ifname=self.device)[0]
            attribute = netlink.get_links(self.index)[0].get_attr("IFLA_ADDRESS")
        self.host_mac = bytes.fromhex(attribute.replace(":", ""))
        node.attach_pod(self.index)
        with self.namespace.netlink() as netlink:
            index = netlink.link_lookup(ifname="eth0")[0]
            netlink.addr("add", index=index, address=str(self.address), prefixlen=32)
            netlink.link("set", index=index, state="up")
            netlink.route("add", dst=f"{GATEWAY}/32", oif=index, scope="link")
            netlink.route("add", dst="default", gateway=str(GATEWAY), oif=index)
        with node.namespace.netlink() as netlink:
            netlink.link("set", index=self.index, state="up")
        with node.namespace.entered():
            links.ensure_pod_route(self.index, self.address, node.address, self.mac)
        self.set_policy(policy)
        self.flag(NamespaceFlag.NONE)
        node.maps.ipcache.put(host_prefix(self.address), tables.CacheEntry(identity=identity))
        node.maps.endpoints.put(tables.AddressKey(address=self.address), self.entry())

    def entry(self, **more: Any) -> tables.Endpoint:
        """Its entry in `endpoints`."""
        values: dict[str, Any] = {
            "ifindex": self.index,
            "identity": self.identity,
            "id": self.id,
            "mac": self.mac,
            "host_mac": self.host_mac,
        }
        return tables.Endpoint(**{**values, **more})

    def flag(self, flags: NamespaceFlag) -> None:
        """Write its entry in `namespaces`."""
        key = tables.NamespaceKey(cookie=self.namespace.cookie())
        self.node.maps.namespaces.put(key, tables.Namespace(endpoint=self.id, flags=flags))

    def set_policy(self, policy: Mapping[tables.PolicyKey, tables.PolicyEntry]) -> None:
        """Replace its policy, as the agent does."""
        self.node.maps.policies.replace({self.id: policy})

    def remove(self) -> None:
        """Take the pod away."""
        maps = self.node.maps
        maps.endpoints.delete(tables.AddressKey(address=self.address))
        maps.ipcache.delete(host_prefix(self.address))
        maps.policies.delete(self.id)
        maps.namespaces.delete(tables.NamespaceKey(cookie=self.namespace.cookie()))
        with self.node.namespace.netlink() as netlink:
            netlink.link("del", index=self.index)
        maps.conntrack.purge(self.id)
        self.namespace.close()


class Fabric:
    """The switch, its nodes, and the tables that make them a cluster."""

    OUTSIDE = ipaddress.IPv4Address("192.168.77.200")

    def __init__(self, sandbox: Sandbox, names: list[str], loader: Sequence[str] = ()) -> None:
        """loader: how to start the loader, if not as ever."""
        self.switch = Switch()
        self.outside = Namespace.make()
        self.switch.plug(self.outside, self.OUTSIDE)
        self.nodes = [Node(sandbox, name, number) for number, name in enumerate(names, 1)]
        for node in self.nodes:
            self.switch.plug(node.namespace, node.address)
            node.write_config()
            node.up(*loader)
            with node.namespace.entered():
                links.ensure_router(links.ifindex("underpass0"), node.router, POD_RANGE)
            node.maps.write_config(dataclasses.replace(node.config(), router=node.router))
        for node in self.nodes:
            self.introduce(node)

    def introduce(self, node: Node) -> None:
        """Write what a node's agent knows of all nodes."""
        for other in self.nodes:
            own = other is node
            flags = NodeFlag.LOCAL if own else NodeFlag.NONE
            tunnel = UNSPECIFIED if own else other.address
            identity = Identity.HOST if own else Identity.REMOTE_NODE
            for address in (other.address, other.router):
                node.maps.nodes.put(
                    tables.AddressKey(address=address), tables.Node(id=other.number, flags=flags)
                )
                node.maps.ipcache.put(
                    host_prefix(address), tables.CacheEntry(tunnel=tunnel, identity=identity)
                )
            node.maps.ipcache.put(
                network_prefix(other.pod_range),
                tables.CacheEntry(tunnel=tunnel, identity=Identity.UNKNOWN, flags=CacheFlag.RANGE),
            )

    def pod(
        self,
        node: Node,
        identity: int,
        policy: Mapping[tables.PolicyKey, tables.PolicyEntry] = OPEN,
    ) -> Pod:
        """A pod that every node knows."""
        pod = Pod(node, identity, policy)
        for other in self.nodes:
            if other is not node:
                other.maps.ipcache.put(
                    host_prefix(pod.address), tables.CacheEntry(tunnel=node.address, identity=identity)
                )
        return pod

    def remove(self, pod: Pod) -> None:
        """Take a pod away, on its node and from what the others know."""
        pod.remove()
        for other in self.nodes:
            if other is not pod.node:
                other.maps.ipcache.delete(host_prefix(pod.address))

    def close(self) -> None:
        """Give the namespaces back."""
        for node in self.nodes:
            node.close()
        self.outside.close()
        self.switch.namespace.close()

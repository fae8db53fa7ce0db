"""The overlay, by frames over a real VXLAN device: who may send, and as whom."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from datapath import tables
from datapath.constants import Direction, Identity, Place, Scope, ServiceFlag
from tests.bpf.conftest import Pods
from tests.bpf.counting import counted
from tests.bpf.fabric import ALLOW, Fabric, Pod, any_key, host_prefix, port_key
from tests.bpf.namespaces import Namespace
from tests.bpf.packets import DROP, PASS, run
from tests.bpf.sandbox import Node
from tests.bpf.services import service
from tests.bpf.talking import Echo, ask, connected, refused_error

SYN = TCP(sport=40000, dport=80, flags="S", seq=100)
INNER = Ether(src="02:aa:00:00:00:01", dst="02:aa:00:00:00:02")


class Sender:
    """Sends VXLAN datagrams from a namespace by an ordinary UDP socket."""

    def __init__(self, namespace: Namespace, to: Node) -> None:
        self._socket = namespace.socket(socket.SOCK_DGRAM)
        self._to = (str(to.address), 8472)

    def __call__(self, inner: Packet, identity: int) -> None:
        self._socket.sendto(bytes(VXLAN(vni=identity, flags="Instance") / inner), self._to)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def from_other(node: Node, other: Node) -> Iterator[Sender]:
    """VXLAN from the other node's own address."""
    sender = Sender(other.namespace, node)
    yield sender
    sender.close()


def inner(source: object, target: Pod | Node, payload: Packet = SYN) -> Packet:
    return INNER / IP(src=str(source), dst=str(target.address)) / payload


def test_a_known_pod_with_its_identity_is_delivered(from_other: Sender, server: Pod, far: Pod) -> None:
    with counted(server.node, "TO_POD", Place.OVERLAY, exactly=False):
        from_other(inner(far.address, server), far.identity)


def test_overlay_from_an_address_that_is_no_node(fabric: Fabric, server: Pod, far: Pod) -> None:
    sender = Sender(fabric.outside, server.node)
    with (
        counted(server.node, "OVERLAY_NOT_NODE", Place.HOST, exactly=False),
        counted(server.node, "TO_POD", Place.OVERLAY, 0),
    ):
        sender(inner(far.address, server), far.identity)
    sender.close()


def test_the_overlay_device_checks_the_outer_source_too(
    from_other: Sender, server: Pod, far: Pod, other: Node
) -> None:
    """Where a packet came by a device without host_ingress."""
    maps = server.node.maps
    key = tables.AddressKey(address=other.address)
    known = maps.nodes.get(key)
    assert known
    maps.nodes.put(key, tables.Node(id=known.id, flags=1))
    try:
        with counted(server.node, "OVERLAY_NOT_NODE", Place.OVERLAY, exactly=False):
            from_other(inner(far.address, server), far.identity)
    finally:
        maps.nodes.put(key, known)
    frame = inner(far.address, server)
    overlay = server.node.namespace.index("underpass0")
    with counted(server.node, "OVERLAY_NOT_NODE", Place.OVERLAY):
        assert run(server.node, "overlay_ingress", frame, ifindex=overlay).action == DROP


def test_an_identity_that_is_not_the_sources(from_other: Sender, server: Pod, far: Pod) -> None:
    with counted(server.node, "OVERLAY_IDENTITY", Place.OVERLAY, exactly=False):
        from_other(inner(far.address, server), far.identity + 1)


@pytest.mark.parametrize("identity", [0, 1, 2, 3, 5, 7, 8, 255])
def test_reserved_identities(identity: int, from_other: Sender, server: Pod, far: Pod) -> None:
    with counted(server.node, "OVERLAY_RESERVED", Place.OVERLAY, exactly=False):
        from_other(inner(far.address, server), identity)


def test_only_a_node_is_a_remote_node(from_other: Sender, server: Pod, far: Pod, other: Node) -> None:
    with counted(server.node, "OVERLAY_IDENTITY", Place.OVERLAY, exactly=False):
        from_other(inner(far.address, server), Identity.REMOTE_NODE)
    with counted(server.node, "TO_POD", Place.OVERLAY, exactly=False):
        from_other(inner(other.router, server), Identity.REMOTE_NODE)
    with counted(server.node, "OVERLAY_IDENTITY", Place.OVERLAY, exactly=False):
        from_other(inner("10.244.2.200", server), Identity.REMOTE_NODE)


def test_an_inner_source_of_another_node(from_other: Sender, server: Pod, client: Pod, node: Node) -> None:
    for source in (client.address, node.address, node.router, "10.244.1.200", "198.51.100.7", "10.244.9.9"):
        with counted(server.node, "OVERLAY_SOURCE", Place.OVERLAY, exactly=False):
            from_other(inner(source, server), client.identity)


def test_a_pod_not_known_yet_is_believed_from_its_own_node(from_other: Sender, server: Pod) -> None:
    with counted(server.node, "TO_POD", Place.OVERLAY, exactly=False):
        from_other(inner("10.244.2.200", server), 4242)
    server.set_policy({any_key(Direction.INGRESS, 4242): ALLOW})
    with counted(server.node, "TO_POD", Place.OVERLAY, exactly=False):
        from_other(inner("10.244.2.201", server), 4242)
    with counted(server.node, "POLICY_DEFAULT", Place.OVERLAY, exactly=False):
        from_other(inner("10.244.2.202", server), 4243)


def test_an_address_used_again_with_another_identity_waits_for_the_tables(
    from_other: Sender, server: Pod, far: Pod
) -> None:
    server.set_policy({any_key(Direction.INGRESS, far.identity): ALLOW})
    with counted(server.node, "OVERLAY_IDENTITY", Place.OVERLAY, exactly=False):
        from_other(inner(far.address, server), 5555)
    server.node.maps.ipcache.put(
        host_prefix(far.address), tables.CacheEntry(tunnel=far.node.address, identity=5555)
    )
    with counted(server.node, "POLICY_DEFAULT", Place.OVERLAY, exactly=False):
        from_other(inner(far.address, server), 5555)


def test_nobody_has_the_inner_destination(from_other: Sender, server: Pod, far: Pod) -> None:
    for destination in ("10.244.1.250", "198.51.100.7", "10.244.2.9"):
        with counted(server.node, "NO_ENDPOINT", Place.OVERLAY, exactly=False):
            from_other(INNER / IP(src=str(far.address), dst=destination) / SYN, far.identity)


def test_what_the_overlay_does_not_carry(from_other: Sender, server: Pod, far: Pod) -> None:
    with counted(server.node, "PROTOCOL_UNSUPPORTED", Place.OVERLAY, exactly=False):
        from_other(INNER / IPv6(dst="2001:db8::1") / SYN, far.identity)
    with counted(server.node, "MALFORMED", Place.OVERLAY, exactly=False):
        from_other(INNER / IP(src=str(far.address), dst=str(server.address), ihl=3) / SYN, far.identity)


def test_the_receivers_policy_sees_the_senders_identity(client: Pod, pods: Pods, other: Node) -> None:
    allowed, denied = pods(other, 3001), pods(other, 3002)
    client.set_policy({any_key(Direction.INGRESS, 3001): ALLOW})
    with connected(allowed.namespace, client, client.address) as connection:
        connection.echo()
    with (
        counted(client.node, "POLICY_DEFAULT", Place.OVERLAY, exactly=False),
        pytest.raises(TimeoutError),
        denied.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.settimeout(0.3)
        end.connect((str(client.address), 80))


def test_nodes_are_remote_nodes_to_each_other(client: Pod, other: Node) -> None:
    client.set_policy({any_key(Direction.INGRESS, Identity.REMOTE_NODE): ALLOW})
    with connected(other.namespace, client, client.address) as connection:
        connection.echo()
    client.set_policy({any_key(Direction.EGRESS): ALLOW})
    with other.namespace.socket(socket.SOCK_STREAM) as end, pytest.raises(TimeoutError):
        end.settimeout(0.3)
        end.connect((str(client.address), 80))


def test_a_node_is_no_router_for_strangers(node: Node, far: Pod) -> None:
    overlay = node.namespace.index("underpass0")
    frame = INNER / IP(src="192.168.77.200", dst=str(far.address)) / SYN
    with counted(node, "NOT_TUNNELLED", Place.OVERLAY):
        eth0 = node.namespace.index("eth0")
        assert run(node, "overlay_egress", frame, ifindex=overlay, came_by=eth0).action == DROP
    with counted(node, "TO_OVERLAY", Place.OVERLAY):
        assert run(node, "overlay_egress", frame, ifindex=overlay, came_by=0).action == PASS
    with counted(node, "NO_ENDPOINT", Place.OVERLAY):
        frame = INNER / IP(src=str(node.router), dst="10.244.77.7") / SYN
        assert run(node, "overlay_egress", frame, ifindex=overlay, came_by=0).action == DROP


@pytest.mark.parametrize("header", [{}, {"options": b"\1\1\1\1"}, {"flags": "MF"}], ids=str)
def test_vxlan_between_nodes_is_let_in(
    header: dict[str, Any], node: Node, other: Node, fabric: Fabric
) -> None:
    """And from nobody else, whatever its header looks like"""
    eth0 = node.namespace.index("eth0")
    ip = IP(src=str(other.address), dst=str(node.address), **header)
    frame = INNER / ip / UDP(sport=1, dport=8472) / b"x"
    assert run(node, "host_ingress", frame, ifindex=eth0).action == PASS
    assert run(node, "host_egress", frame, ifindex=eth0).action == PASS
    frame[IP].src = str(fabric.OUTSIDE)
    with counted(node, "OVERLAY_NOT_NODE", Place.HOST):
        assert run(node, "host_ingress", frame, ifindex=eth0).action == DROP


def test_a_pod_of_another_node_reaches_a_host_port_under_its_own_identity(server: Pod, far: Pod) -> None:
    node = server.node
    with (
        service(
            node,
            node.address,
            8888,
            [(server.address, 8080)],
            scopes=tuple(Scope),
            flags=ServiceFlag.KEEP_SOURCE,
        ),
        Echo(server.namespace, server.address, 8080, "server"),
        counted(node, "SERVICE_TRANSLATED", Place.OVERLAY, 3, exactly=False),
        counted(node, "REPLY_TRANSLATED", Place.POD_EGRESS, 2, exactly=False),
    ):
        server.set_policy({port_key(Direction.INGRESS, 6, 8080, far.identity): ALLOW})
        assert ask(far.namespace, node.address, 8888) == ("server", str(far.address))
        server.set_policy({port_key(Direction.INGRESS, 6, 8080, far.identity + 1): ALLOW})
        with pytest.raises(TimeoutError):
            raise refused_error(far.namespace, node.address, 8888, timeout=0.3)
    assert refused_error(far.namespace, node.address, 8888).errno == errno.ECONNREFUSED

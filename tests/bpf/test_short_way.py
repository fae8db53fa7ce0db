"""The short way to another node: the program writes the VXLAN header. And what takes the overlay device."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from datapath.constants import Place
from tests.bpf.counting import counted, wait_for
from tests.bpf.fabric import Fabric, Pod
from tests.bpf.namespaces import Namespace
from tests.bpf.packets import REDIRECT, frame_from, inside, sent_by
from tests.bpf.sandbox import Node
from tests.bpf.talking import connected, listening

SEGMENT = TCP(sport=40000, dport=80, flags="S", seq=100)


def carried(client: Pod, far: Pod, payload: Packet = SEGMENT, **ip: object) -> tuple[Packet, Packet]:
    """What leaves the node for a packet of the client, and the frame that the pod sent."""
    frame = frame_from(client, far.address, payload, **ip)
    with counted(client.node, "TO_OVERLAY", Place.POD_EGRESS):
        outcome = sent_by(client, frame)
    assert outcome.action == REDIRECT
    return outcome.frame, Ether(bytes(frame))


def by_device(node: Node, name: str = "underpass0") -> int:
    """Packets that a device of the node has sent."""
    with node.namespace.netlink() as netlink:
        statistics = netlink.get_links(node.namespace.index(name))[0].get_attr("IFLA_STATS64")
    return int(statistics["tx_packets"])


def test_the_frame_is_vxlan_to_the_pods_node_with_its_identity(client: Pod, far: Pod) -> None:
    frame, sent = carried(client, far, SEGMENT / Raw(b"x" * 301))
    outer = frame[IP]
    assert (outer.src, outer.dst) == (str(client.node.address), str(far.node.address))
    assert (outer.ihl, outer.len, outer.frag, outer[UDP].len) == (5, len(outer), 0, len(outer) - 20)
    assert (outer[UDP].dport, outer[UDP].chksum) == (8472, 0)
    assert outer[UDP].sport >= 49152
    again = outer.copy()
    del again.chksum
    assert IP(bytes(again)).chksum == outer.chksum
    assert VXLAN(bytes(outer[UDP].payload)).vni == client.identity
    assert bytes(inside(frame)[IP]) == bytes(sent[IP]), "the pod's packet as it was"


def test_the_source_port_follows_the_flow(client: Pod, far: Pod) -> None:
    def port(of: int) -> int:
        return int(carried(client, far, TCP(sport=of, dport=80, flags="S"))[0][UDP].sport)

    assert port(40001) == port(40001)
    assert len({port(of) for of in range(40001, 40021)}) > 10


@pytest.mark.parametrize(("mark", "outer"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_congestion_marks_travel_as_in_the_kernels_tunnels(
    mark: int, outer: int, client: Pod, far: Pod
) -> None:
    frame, _ = carried(client, far, tos=0xB8 | mark)
    assert frame[IP].tos == outer


def test_single_segments_pass_the_overlay_device_by_and_large_ones_take_it(client: Pod, far: Pod) -> None:
    with connected(client.namespace, far, far.address) as connection:
        before = by_device(client.node), by_device(far.node)
        for _ in range(20):
            connection.echo(b"x" * 256)
        assert (by_device(client.node), by_device(far.node)) == before
        connection.echo(bytes(100_000))
        assert by_device(client.node) > before[0], "the kernel has still to cut them"


def test_what_is_too_large_for_the_road_takes_the_overlay_device(client: Pod, far: Pod) -> None:
    node, data = client.node, bytes(range(250)) * 5
    with node.namespace.netlink() as netlink:
        netlink.link("set", index=node.namespace.index("eth0"), mtu=1280)
    try:
        before = by_device(node)
        with (
            listening(far.namespace, far.address, 53, socket.SOCK_DGRAM) as listener,
            client.namespace.socket(socket.SOCK_DGRAM) as end,
        ):
            end.sendto(data, (str(far.address), 53))
            assert listener.recv(2000) == data, "in pieces, put together again by the other node"
        assert by_device(node) == before + 1
    finally:
        with node.namespace.netlink() as netlink:
            netlink.link("set", index=node.namespace.index("eth0"), mtu=1500)


def forwarded(namespace: Namespace) -> int:
    """Datagrams that a namespace has passed on as a router."""
    with namespace.entered(), open("/proc/thread-self/net/snmp") as table:  # noqa: PTH123
        names, values = [line.split() for line in table if line.startswith("Ip:")]
    return int(values[names.index("ForwDatagrams")])


def test_a_node_behind_a_router_is_reached_through_it(client: Pod, far: Pod, fabric: Fabric) -> None:
    node, router = client.node, fabric.outside
    for name, value in (
        ("ip_forward", "1"),
        ("conf/all/send_redirects", "0"),
        ("conf/eth0/send_redirects", "0"),
    ):
        router.write_sysctl(f"ipv4/{name}", value)
    road = {"dst": f"{far.node.address}/32", "gateway": str(Fabric.OUTSIDE)}
    with node.namespace.netlink() as netlink:
        netlink.route("add", **road)
    try:
        before = by_device(node), forwarded(router)
        with connected(client.namespace, far, far.address) as connection:
            connection.echo()
        assert by_device(node) == before[0]
        assert forwarded(router) >= before[1] + 4, "a handshake, a message, its acknowledgment"
    finally:
        with node.namespace.netlink() as netlink:
            netlink.route("del", **road)
        router.write_sysctl("ipv4/ip_forward", "0")


def test_a_tunnel_of_the_pods_own_takes_the_overlay_device(client: Pod, far: Pod) -> None:
    inner = [ipaddress.ip_address(text) for text in ("10.99.0.1", "10.99.0.2")]
    for pod, peer, address in ((client, far, inner[0]), (far, client, inner[1])):
        with pod.namespace.netlink() as netlink:
            tunnel = {"vxlan_id": 5, "vxlan_port": 4789, "vxlan_group": str(peer.address)}
            netlink.link("add", ifname="own", kind="vxlan", mtu=1300, **tunnel)
            index = pod.namespace.index("own")
            netlink.addr("add", index=index, address=str(address), prefixlen=24)
            netlink.link("set", index=index, state="up")
    before = by_device(client.node)
    with connected(client.namespace, far.namespace, inner[1], 7005) as connection:
        connection.echo(b"x" * 256)
    wait_for(lambda: by_device(client.node) > before, "the overlay device was used")

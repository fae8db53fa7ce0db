"""A pod that may configure its own network (NET_ADMIN, NET_RAW) and uses it against others."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from datapath.constants import NUDGE_MARK, Direction, Place
from datapath.tables import AddressKey
from tests.bpf.counting import counted
from tests.bpf.fabric import ALLOW, Fabric, Pod, any_key
from tests.bpf.packets import frame_from, mac_text
from tests.bpf.sandbox import GATEWAY, Node
from tests.bpf.talking import connected, listening

SO_MARK = 36


def send_raw(pod: Pod, frame: Packet) -> None:
    """A frame out of the pod's own device, as its owner made it."""
    with pod.namespace.socket(socket.SOCK_RAW, socket.AF_PACKET) as raw:
        raw.bind(("eth0", 0))
        raw.send(bytes(frame))


def hears_nothing(listener: socket.socket) -> bool:
    listener.settimeout(0.2)
    try:
        listener.recv(100)
    except TimeoutError:
        return True
    return False


def test_it_takes_another_pods_address(client: Pod, server: Pod, far: Pod) -> None:
    with client.namespace.netlink() as netlink:
        netlink.addr(
            "add", index=netlink.link_lookup(ifname="eth0")[0], address=str(server.address), prefixlen=32
        )
    with (
        listening(far.namespace, far.address, 53, socket.SOCK_DGRAM) as listener,
        client.namespace.socket(socket.SOCK_DGRAM) as end,
        counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS, exactly=False),
    ):
        end.bind((str(server.address), 0))
        end.sendto(b"x", (str(far.address), 53))
        assert hears_nothing(listener)


def test_it_changes_its_mac(client: Pod, server: Pod) -> None:
    with client.namespace.netlink() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        netlink.link("set", index=index, address=mac_text(server.mac))
    with (
        listening(server.namespace, server.address, 53, socket.SOCK_DGRAM) as listener,
        client.namespace.socket(socket.SOCK_DGRAM) as end,
        counted(client.node, "MAC_SPOOFED", Place.POD_EGRESS, exactly=False),
    ):
        end.sendto(b"x", (str(server.address), 53))
        assert hears_nothing(listener)


def test_it_tags_its_frames(client: Pod, server: Pod) -> None:
    plain = frame_from(client, server.address, UDP(sport=4000, dport=53) / Raw(b"x"))
    tagged = Ether(src=plain.src, dst=plain.dst) / Dot1Q(vlan=5) / plain[IP]
    with (
        listening(server.namespace, server.address, 53, socket.SOCK_DGRAM) as listener,
        counted(client.node, "PROTOCOL_UNSUPPORTED", Place.POD_EGRESS, exactly=False),
    ):
        send_raw(client, tagged)
        assert hears_nothing(listener)


def test_it_answers_arp_for_the_gateway(client: Pod, server: Pod) -> None:
    lie = Ether(src=mac_text(client.mac), dst=mac_text(server.mac)) / ARP(
        op=2,
        psrc=str(GATEWAY),
        hwsrc=mac_text(client.mac),
        pdst=str(server.address),
        hwdst=mac_text(server.mac),
    )
    with counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS, exactly=False):
        send_raw(client, lie)
    with connected(server.namespace, client, client.address) as connection:
        connection.echo()


def test_it_speaks_vxlan_to_nodes(client: Pod, server: Pod, far: Pod, other: Node) -> None:
    server.set_policy({})
    inner = Ether() / IP(src=str(far.address), dst=str(server.address)) / TCP(sport=1, dport=80, flags="S")
    for node in (client.node, other):
        with (
            client.namespace.socket(socket.SOCK_DGRAM) as end,
            counted(client.node, "POD_SENT_OVERLAY", Place.POD_EGRESS, exactly=False),
        ):
            datagram = bytes(VXLAN(vni=far.identity, flags="Instance") / inner)
            end.sendto(datagram, (str(node.address), 8472))


def test_its_marks_do_not_leave_its_namespace(client: Pod, server: Pod) -> None:
    server.set_policy({any_key(Direction.EGRESS): ALLOW})
    with (
        listening(server.namespace, server.address, 53, socket.SOCK_DGRAM) as listener,
        client.namespace.socket(socket.SOCK_DGRAM) as end,
        counted(client.node, "NUDGED", Place.POD_INGRESS, 0),
        counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS, exactly=False),
    ):
        end.setsockopt(socket.SOL_SOCKET, SO_MARK, NUDGE_MARK)
        end.sendto(b"x", (str(server.address), 53))
        assert hears_nothing(listener)


def test_it_sends_resets_into_connections_of_others(client: Pod, server: Pod, far: Pod) -> None:
    with connected(far.namespace, server, server.address) as connection:
        connection.echo()
        port = connection.client.getsockname()[1]
        forged = TCP(sport=port, dport=80, flags="R", seq=0)
        with counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS, exactly=False):
            send_raw(client, frame_from(client, server.address, forged, src=str(far.address)))
        connection.echo()


def test_it_brings_its_device_down_and_up(client: Pod, server: Pod) -> None:
    """Its routes go with the link; the programs on the other end stay."""
    client.set_policy({any_key(Direction.EGRESS, server.identity): ALLOW})
    with client.namespace.netlink() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        netlink.link("set", index=index, state="down")
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst=f"{GATEWAY}/32", oif=index, scope="link")
        netlink.route("add", dst="default", gateway=str(GATEWAY), oif=index)
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
    with counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS, exactly=False), pytest.raises(TimeoutError):
        end = client.namespace.socket(socket.SOCK_STREAM)
        end.settimeout(0.3)
        end.connect((str(Fabric.OUTSIDE), 80))


def test_before_its_endpoint_is_written_it_has_no_network(client: Pod, server: Pod) -> None:
    """The agent writes the endpoint last; until then the programs drop everything."""
    client.node.maps.endpoints.delete(AddressKey(address=client.address))
    with (
        listening(server.namespace, server.address, 53, socket.SOCK_DGRAM) as listener,
        client.namespace.socket(socket.SOCK_DGRAM) as end,
        counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS, exactly=False),
    ):
        end.sendto(b"x", (str(server.address), 53))
        assert hears_nothing(listener)

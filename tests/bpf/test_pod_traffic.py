"""What a pod sends, packet by packet: where it goes, and what is never let out."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from datapath import tables
from datapath.constants import Direction, Place, PolicyFlag, Verdict
from tests.bpf.counting import counted
from tests.bpf.fabric import ALLOW, DENY, OPEN, Fabric, Pod, any_key, port_key
from tests.bpf.packets import DROP, PASS, REDIRECT, frame_from, frame_to, mac_text, run, sent_by
from tests.bpf.sandbox import GATEWAY, Node

SYN = TCP(sport=40000, dport=80, flags="S", seq=100)


# Where packets go


def test_to_a_pod_of_this_node(client: Pod, server: Pod) -> None:
    with counted(client.node, "TO_POD", Place.POD_EGRESS):
        outcome = sent_by(client, frame_from(client, server.address, SYN))
    assert outcome.action == REDIRECT
    assert outcome.frame.dst == mac_text(server.mac)
    assert outcome.frame.src == mac_text(server.host_mac)


def test_to_a_pod_of_another_node(client: Pod, far: Pod) -> None:
    with counted(client.node, "TO_OVERLAY", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, far.address, SYN)).action == REDIRECT


def test_to_this_node(client: Pod) -> None:
    with counted(client.node, "TO_HOST", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, client.node.address, SYN)).action == PASS


def test_to_outside(client: Pod) -> None:
    with counted(client.node, "TO_OUTSIDE", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, "198.51.100.7", SYN)).action == PASS


def test_from_outside_to_a_pod(server: Pod) -> None:
    frame = frame_to(server, Fabric.OUTSIDE, SYN)
    with counted(server.node, "TO_POD", Place.POD_INGRESS):
        outcome = run(
            server.node,
            "pod_ingress",
            frame,
            ifindex=server.index,
            came_by=server.node.namespace.index("eth0"),
        )
    assert outcome.action == PASS


# Who sends


@pytest.mark.parametrize("whose", ["another pod's", "a node's", "another node's", "nobody's", "outside's"])
def test_a_source_address_that_is_not_the_pods(whose: str, client: Pod, server: Pod, other: Node) -> None:
    source = {
        "another pod's": server.address,
        "a node's": client.node.address,
        "another node's": other.address,
        "nobody's": ipaddress.ip_address("10.244.1.250"),
        "outside's": ipaddress.ip_address("198.51.100.7"),
    }[whose]
    with counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS):
        outcome = sent_by(client, frame_from(client, server.address, SYN, src=str(source)))
    assert outcome.action == DROP


@pytest.mark.parametrize("whose", ["another pod's", "the gateway's", "any other"])
def test_a_source_mac_that_is_not_the_pods(whose: str, client: Pod, server: Pod) -> None:
    frame = frame_from(client, server.address, SYN)
    frame.src = {
        "another pod's": mac_text(server.mac),
        "the gateway's": mac_text(client.host_mac),
        "any other": "02:ff:ff:ff:ff:ff",
    }[whose]
    with counted(client.node, "MAC_SPOOFED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP


def test_an_overlay_packet_from_a_pod_to_a_node(client: Pod, other: Node) -> None:
    for address in (client.node.address, other.address, other.router):
        with counted(client.node, "POD_SENT_OVERLAY", Place.POD_EGRESS):
            frame = frame_from(client, address, UDP(sport=5000, dport=8472) / Raw(b"\x08" + bytes(40)))
            assert sent_by(client, frame).action == DROP


# ARP


def arp(pod: Pod, **fields: Any) -> Packet:
    values: dict[str, Any] = {
        "op": 1,
        "hwsrc": mac_text(pod.mac),
        "psrc": str(pod.address),
        "pdst": str(GATEWAY),
        **fields,
    }
    return Ether(src=mac_text(pod.mac), dst="ff:ff:ff:ff:ff:ff") / ARP(**values)


def test_the_gateway_is_answered_for(client: Pod) -> None:
    with counted(client.node, "ARP_ANSWERED", Place.POD_EGRESS):
        outcome = sent_by(client, arp(client))
    assert outcome.action == REDIRECT
    answer = outcome.frame[ARP]
    assert (answer.op, answer.psrc, answer.hwsrc) == (2, str(GATEWAY), mac_text(client.host_mac))
    assert (answer.pdst, answer.hwdst) == (str(client.address), mac_text(client.mac))


def test_arp_for_anything_else_is_refused(client: Pod, server: Pod) -> None:
    for frame in (
        arp(client, pdst=str(server.address)),
        arp(client, op=2, pdst=str(server.address)),
        arp(client, pdst=str(client.address)),
    ):
        with counted(client.node, "ARP_REFUSED", Place.POD_EGRESS):
            assert sent_by(client, frame).action == DROP


def test_arp_in_the_name_of_others_is_refused(client: Pod, server: Pod) -> None:
    for address in (server.address, GATEWAY, client.node.address):
        with counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS):
            assert sent_by(client, arp(client, op=2, psrc=str(address))).action == DROP
    with counted(client.node, "MAC_SPOOFED", Place.POD_EGRESS):
        assert sent_by(client, arp(client, hwsrc=mac_text(server.mac))).action == DROP


def test_arp_from_the_host_does_not_reach_a_pod(client: Pod) -> None:
    frame = Ether(dst=mac_text(client.mac)) / ARP(op=1, psrc="192.168.77.1", pdst=str(client.address))
    with counted(client.node, "ARP_REFUSED", Place.POD_INGRESS):
        assert run(client.node, "pod_ingress", frame, ifindex=client.index, came_by=0).action == DROP


# What cannot be read or is not carried


@pytest.mark.parametrize("cut", [24, 38])
def test_headers_cut_short(cut: int, client: Pod, server: Pod) -> None:
    frame = bytes(frame_from(client, server.address, SYN))[: 14 + cut]
    with counted(client.node, "MALFORMED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP


def test_header_length_too_small(client: Pod, server: Pod) -> None:
    with counted(client.node, "MALFORMED", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, server.address, SYN, ihl=4)).action == DROP


def test_ipv6_is_not_carried(client: Pod) -> None:
    frame = Ether(src=mac_text(client.mac), dst=mac_text(client.host_mac)) / IPv6(dst="2001:db8::1") / SYN
    with counted(client.node, "PROTOCOL_UNSUPPORTED", Place.POD_EGRESS, exactly=False):
        assert sent_by(client, frame).action == DROP


@pytest.mark.parametrize("destination", ["224.0.0.1", "255.255.255.255", "0.0.0.0"])
def test_multicast_and_broadcast(destination: str, client: Pod) -> None:
    with counted(client.node, "MULTICAST_UNSUPPORTED", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, destination, UDP(dport=9))).action == DROP


def test_an_address_of_this_node_that_nobody_has(client: Pod) -> None:
    with counted(client.node, "NO_ENDPOINT", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, "10.244.1.251", SYN)).action == DROP


def test_an_address_of_the_cluster_that_no_node_has(client: Pod) -> None:
    with counted(client.node, "NO_ENDPOINT", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, "10.244.99.9", SYN)).action == DROP


def test_an_address_of_another_node_whose_identity_is_not_known_yet(client: Pod) -> None:
    with counted(client.node, "IDENTITY_UNKNOWN", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, "10.244.2.251", SYN)).action == DROP


def test_nothing_passes_before_the_node_is_configured(client: Pod, server: Pod) -> None:
    maps = client.node.maps
    config = client.node.config()
    maps.write_config(tables.Config.unpack(bytes(tables.Config.size())))
    try:
        frame = frame_from(client, server.address, SYN)
        for program, place in (
            ("pod_egress", Place.POD_EGRESS),
            ("pod_ingress", Place.POD_INGRESS),
            ("overlay_ingress", Place.OVERLAY),
            ("overlay_egress", Place.OVERLAY),
        ):
            with counted(client.node, "NOT_CONFIGURED", place, exactly=False):
                assert run(client.node, program, frame, ifindex=client.index).action == DROP
    finally:
        maps.write_config(config)


# Policy


def test_a_pod_without_a_policy_table_reaches_nobody(client: Pod, server: Pod) -> None:
    client.node.maps.policies.delete(client.id)
    with counted(client.node, "POLICY_MISSING", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, server.address, SYN)).action == DROP


def test_the_receivers_policy_runs_before_delivery(client: Pod, server: Pod) -> None:
    server.set_policy({any_key(Direction.EGRESS): ALLOW})
    with counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, server.address, SYN)).action == DROP
    server.set_policy({**OPEN, any_key(Direction.INGRESS, client.identity): DENY})
    with counted(client.node, "POLICY_DENIED", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, server.address, SYN)).action == DROP


CASES = {
    "exact port": ({port_key(Direction.EGRESS, 6, 80): ALLOW}, True),
    "another port": ({port_key(Direction.EGRESS, 6, 81): ALLOW}, False),
    "another protocol": ({port_key(Direction.EGRESS, 17, 80): ALLOW}, False),
    "exact identity": ({any_key(Direction.EGRESS, 1002): ALLOW}, True),
    "another identity": ({any_key(Direction.EGRESS, 1003): ALLOW}, False),
    "the other direction": ({any_key(Direction.INGRESS): ALLOW}, False),
    "identity and port": ({port_key(Direction.EGRESS, 6, 80, 1002): ALLOW}, True),
    "port range": (
        {tables.PolicyKey(prefix=60, identity=0, direction=1, protocol=6, port=80): ALLOW},
        True,
    ),
    "port range beside it": (
        {tables.PolicyKey(prefix=60, identity=0, direction=1, protocol=6, port=96): ALLOW},
        False,
    ),
    "any port of the protocol": (
        {tables.PolicyKey(prefix=48, identity=0, direction=1, protocol=6): ALLOW},
        True,
    ),
    "denial of all under an allowed identity": (
        {any_key(Direction.EGRESS, 1002): ALLOW, any_key(Direction.EGRESS): DENY},
        False,
    ),
    "denial of one identity under all": (
        {any_key(Direction.EGRESS): ALLOW, any_key(Direction.EGRESS, 1002): DENY},
        False,
    ),
    "denial of one port": (
        {any_key(Direction.EGRESS): ALLOW, port_key(Direction.EGRESS, 6, 80): DENY},
        False,
    ),
    "denial of another port": (
        {any_key(Direction.EGRESS): ALLOW, port_key(Direction.EGRESS, 6, 81): DENY},
        True,
    ),
    "empty": ({}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_policy_entries(case: str, client: Pod, server: Pod) -> None:
    policy, allowed = CASES[case]
    client.set_policy(policy)
    outcome = sent_by(client, frame_from(client, server.address, SYN))
    assert (outcome.action == REDIRECT) == allowed


def test_sctp_is_judged_by_its_ports(client: Pod, server: Pod) -> None:
    client.set_policy({port_key(Direction.EGRESS, 132, 80): ALLOW})
    header = Raw((40000).to_bytes(2, "big") + (80).to_bytes(2, "big") + bytes(8))
    assert sent_by(client, frame_from(client, server.address, header, proto=132)).action == REDIRECT
    header = Raw((40000).to_bytes(2, "big") + (81).to_bytes(2, "big") + bytes(8))
    assert sent_by(client, frame_from(client, server.address, header, proto=132)).action == DROP


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        (tables.PolicyEntry(verdict=Verdict.ALLOW, flags=PolicyFlag.AUTH_REQUIRED), "AUTH_REQUIRED"),
        (tables.PolicyEntry(verdict=Verdict.ALLOW, proxy_port=9000), "PROXY_UNAVAILABLE"),
    ],
)
def test_what_nobody_can_enforce_yet_is_refused(
    entry: tables.PolicyEntry, label: str, client: Pod, server: Pod
) -> None:
    client.set_policy({any_key(Direction.EGRESS): entry})
    with counted(client.node, label, Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, server.address, SYN)).action == DROP


def test_the_nodes_own_processes_always_reach_a_pod(server: Pod) -> None:
    server.set_policy({})
    frame = frame_to(server, server.node.address, SYN)
    assert run(server.node, "pod_ingress", frame, ifindex=server.index, came_by=0).action == PASS
    answer = frame_from(server, server.node.address, TCP(sport=80, dport=40000, flags="SA"))
    assert sent_by(server, answer).action == PASS


def test_a_cluster_address_that_comes_from_outside_is_refused(server: Pod, client: Pod, far: Pod) -> None:
    eth0 = server.node.namespace.index("eth0")
    for source in (far.address, client.address, far.node.address, "10.244.2.77"):
        with counted(server.node, "NOT_TUNNELLED", Place.POD_INGRESS):
            frame = frame_to(server, source, SYN)
            outcome = run(server.node, "pod_ingress", frame, ifindex=server.index, came_by=eth0)
            assert outcome.action == DROP


# Connections


def test_answers_pass_where_questions_were_allowed(client: Pod, server: Pod) -> None:
    client.set_policy({any_key(Direction.EGRESS): ALLOW})
    server.set_policy({any_key(Direction.INGRESS): ALLOW})
    assert sent_by(client, frame_from(client, server.address, SYN)).action == REDIRECT
    answer = frame_from(server, client.address, TCP(sport=80, dport=40000, flags="SA"))
    assert sent_by(server, answer).action == REDIRECT
    unasked = frame_from(server, client.address, TCP(sport=80, dport=40001, flags="SA"))
    assert sent_by(server, unasked).action == DROP


def test_a_new_syn_is_always_judged(client: Pod, server: Pod) -> None:
    assert sent_by(client, frame_from(client, server.address, SYN)).action == REDIRECT
    client.node.maps.policies.replace({client.id: {any_key(Direction.INGRESS): ALLOW}})
    with counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS):
        assert sent_by(client, frame_from(client, server.address, SYN)).action == DROP


def test_a_datagram_flow_that_is_revoked_stops(client: Pod, server: Pod) -> None:
    frame = frame_from(client, server.address, UDP(sport=4000, dport=53))
    assert sent_by(client, frame).action == REDIRECT
    client.set_policy({any_key(Direction.INGRESS): ALLOW})
    with counted(client.node, "CONNECTION_REVOKED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP


def test_a_revoked_datagram_flow_goes_on_once_policy_allows_it_again(client: Pod, server: Pod) -> None:
    """Its ends know nothing of the revocation and keep their ports: no time has to pass."""
    frame = frame_from(client, server.address, UDP(sport=4000, dport=53))
    assert sent_by(client, frame).action == REDIRECT
    client.set_policy({any_key(Direction.INGRESS): ALLOW})
    for _ in range(2):
        assert sent_by(client, frame).action == DROP
    client.set_policy({any_key(Direction.INGRESS): ALLOW, port_key(Direction.EGRESS, 17, 54): ALLOW})
    with counted(client.node, "CONNECTION_REVOKED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP, "a change that does not allow it does not open it"
    client.set_policy(OPEN)
    assert sent_by(client, frame).action == REDIRECT
    assert sent_by(server, frame_from(server, client.address, UDP(sport=53, dport=4000))).action == REDIRECT


def test_a_late_answer_does_not_open_a_revoked_flow(client: Pod, server: Pod) -> None:
    """It is judged in the direction in which the flow was opened, also after the policy has moved again."""
    assert sent_by(client, frame_from(client, server.address, UDP(sport=4000, dport=53))).action == REDIRECT
    answer = frame_from(server, client.address, UDP(sport=53, dport=4000))
    for number in range(2):
        client.set_policy({any_key(Direction.INGRESS): ALLOW, port_key(Direction.EGRESS, 17, number): ALLOW})
        with counted(client.node, "CONNECTION_REVOKED", Place.POD_EGRESS):
            assert sent_by(server, answer).action == DROP


def test_a_revoked_connection_stays_so_whatever_policy_says_later(client: Pod, server: Pod) -> None:
    """The ends of a TCP connection have been sent resets: one that missed its own must not go on alone."""
    assert sent_by(client, frame_from(client, server.address, SYN)).action == REDIRECT
    data = frame_from(client, server.address, TCP(sport=40000, dport=80, flags="A", seq=101, ack=1))
    client.set_policy({any_key(Direction.INGRESS): ALLOW})
    with counted(client.node, "CONNECTION_REVOKED", Place.POD_EGRESS, 2):
        sent_by(client, data)
        client.set_policy(OPEN)
        sent_by(client, data)


def test_a_change_of_the_peers_identity_has_the_flow_judged_again(client: Pod, server: Pod) -> None:
    client.set_policy({any_key(Direction.EGRESS, server.identity): ALLOW})
    frame = frame_from(client, server.address, UDP(sport=4000, dport=53))
    assert sent_by(client, frame).action == REDIRECT
    key = tables.AddressKey(address=server.address)
    server.node.maps.endpoints.put(key, server.entry(identity=1099))
    with counted(client.node, "CONNECTION_REVOKED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP


def test_an_address_used_again_inherits_no_connection(client: Pod, server: Pod) -> None:
    frame = frame_from(client, server.address, UDP(sport=4000, dport=53))
    answer = frame_from(server, client.address, UDP(sport=53, dport=4000))
    client.set_policy({any_key(Direction.EGRESS): ALLOW})
    assert sent_by(client, frame).action == REDIRECT
    assert sent_by(server, answer).action == REDIRECT
    reborn = 60000 + client.id
    client.node.maps.policies.replace({reborn: {any_key(Direction.EGRESS): ALLOW}})
    client.node.maps.endpoints.put(tables.AddressKey(address=client.address), client.entry(id=reborn))
    with counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS):
        assert sent_by(server, answer).action == DROP
    client.node.maps.policies.delete(reborn)
    client.node.maps.conntrack.purge(reborn)


# ICMP


def test_echo_and_its_answer(client: Pod, server: Pod) -> None:
    client.set_policy({port_key(Direction.EGRESS, 1, 8): ALLOW})
    assert sent_by(client, frame_from(client, server.address, ICMP(type=8, id=7))).action == REDIRECT
    assert sent_by(server, frame_from(server, client.address, ICMP(type=0, id=7))).action == REDIRECT
    with counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS):
        assert sent_by(server, frame_from(server, client.address, ICMP(type=0, id=8))).action == DROP


def error_about(source: object, destination: object, sport: int, dport: int) -> ICMP:
    embedded = IPerror(src=str(source), dst=str(destination)) / TCPerror(sport=sport, dport=dport)
    return ICMP(type=3, code=4, nexthopmtu=1300) / embedded


def test_an_icmp_error_reaches_its_connection_and_no_other(client: Pod, server: Pod) -> None:
    client.set_policy({any_key(Direction.EGRESS): ALLOW})
    assert sent_by(client, frame_from(client, "198.51.100.7", SYN)).action == PASS
    eth0 = client.node.namespace.index("eth0")

    def arrives(sport: int) -> int:
        frame = frame_to(client, "203.0.113.1", error_about(client.address, "198.51.100.7", sport, 80))
        return run(client.node, "pod_ingress", frame, ifindex=client.index, came_by=eth0).action

    assert arrives(40000) == PASS
    with counted(client.node, "ICMP_UNRELATED", Place.POD_INGRESS):
        assert arrives(40001) == DROP


def test_an_icmp_error_from_a_pod_about_somebody_elses_connection(client: Pod, server: Pod) -> None:
    frame = frame_from(client, server.address, error_about(server.address, "198.51.100.7", 80, 40000))
    with counted(client.node, "SOURCE_SPOOFED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP
    frame = frame_from(client, "10.244.1.99", error_about(server.address, client.address, 80, 40000))
    with counted(client.node, "MALFORMED", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP


# Fragments


def test_later_fragments_follow_the_first(client: Pod, server: Pod) -> None:
    client.set_policy({port_key(Direction.EGRESS, 17, 53): ALLOW})
    first = frame_from(
        client, server.address, UDP(sport=4000, dport=53, len=2000) / Raw(bytes(1000)), id=77, flags="MF"
    )
    later = frame_from(client, server.address, Raw(bytes(900)), id=77, frag=126, proto=17)
    with counted(client.node, "FRAGMENT_UNKNOWN", Place.POD_EGRESS):
        assert sent_by(client, later).action == DROP
    assert sent_by(client, first).action == REDIRECT
    assert sent_by(client, later).action == REDIRECT
    denied = frame_from(
        client, server.address, UDP(sport=4000, dport=54, len=2000) / Raw(bytes(1000)), id=78, flags="MF"
    )
    assert sent_by(client, denied).action == DROP
    later[IP].id = 78
    del later[IP].chksum
    assert sent_by(client, later).action == DROP

"""Services on packets: clients outside the cluster, and pods whose sockets are not translated."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import socket
import time

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from datapath import libbpf, tables
from datapath.codec import UNSPECIFIED
from datapath.constants import CacheFlag, Direction, Identity, Place, Scope, ServiceFlag
from tests.bpf.conftest import Pods
from tests.bpf.counting import counted
from tests.bpf.fabric import ALLOW, Fabric, Pod, any_key, host_prefix, port_key
from tests.bpf.packets import (
    DROP,
    PASS,
    REDIRECT,
    checksums_hold,
    frame_from,
    frame_to,
    inside,
    run,
    sent_by,
)
from tests.bpf.sandbox import Node
from tests.bpf.services import ANY_NODE, service
from tests.bpf.talking import Echo, ask, listening, refused_error

VIP = ipaddress.IPv4Address("10.96.0.10")
BOTH = (Scope.CLUSTER, Scope.EXTERNAL)
SYN = TCP(sport=40000, dport=80, flags="S", seq=100)
HEADER = Ether(src="02:fc:00:00:00:01", dst="02:fc:00:00:00:02")


# From pods, by packet


def test_a_pods_packets_reach_a_backend_and_answers_come_from_the_service(
    client: Pod, server: Pod, far: Pod
) -> None:
    for target in (server, far):
        with (
            service(client.node, VIP, 80, [(target.address, 8080)]),
            Echo(target.namespace, target.address, 8080, "server"),
            counted(client.node, "SERVICE_TRANSLATED", Place.POD_EGRESS, 3, exactly=False),
        ):
            assert ask(client.namespace, VIP, 80) == ("server", str(client.address))


def test_a_service_on_a_nodes_own_process(client: Pod) -> None:
    node = client.node
    with (
        service(node, VIP, 443, [(node.address, 6443)]),
        Echo(node.namespace, node.address, 6443, "api"),
        counted(node, "REPLY_TRANSLATED", Place.POD_INGRESS, 2, exactly=False),
    ):
        assert ask(client.namespace, VIP, 443)[0] == "api"


def test_a_node_port_by_packet(client: Pod, server: Pod, other: Node) -> None:
    with (
        service(client.node, ANY_NODE, 30080, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        for address in (client.node.address, other.address):
            assert ask(client.namespace, address, 30080)[0] == "server"


def test_an_external_address_by_packet(client: Pod, server: Pod) -> None:
    address = ipaddress.IPv4Address("203.0.113.9")
    client.node.maps.ipcache.put(
        host_prefix(address), tables.CacheEntry(identity=Identity.WORLD, flags=CacheFlag.SERVICE)
    )
    with (
        service(client.node, address, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        assert ask(client.namespace, address, 80)[0] == "server"
    client.node.maps.ipcache.delete(host_prefix(address))


def test_a_pod_reaches_itself_by_packet(server: Pod) -> None:
    with (
        service(server.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "self"),
    ):
        assert ask(server.namespace, VIP, 80) == ("self", "169.254.1.2")


def test_policy_judges_the_backend_and_not_the_service(client: Pod, server: Pod) -> None:
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        client.set_policy({port_key(Direction.EGRESS, 6, 8080, server.identity): ALLOW})
        assert ask(client.namespace, VIP, 80)[0] == "server"
        client.set_policy({port_key(Direction.EGRESS, 6, 80): ALLOW})
        with pytest.raises(TimeoutError):
            raise refused_error(client.namespace, VIP, 80, timeout=0.3)


def test_refusals_are_immediate(client: Pod) -> None:
    with service(client.node, VIP, 80, []):
        started = time.monotonic()
        with counted(client.node, "SERVICE_NO_BACKEND", Place.POD_EGRESS):
            assert refused_error(client.namespace, VIP, 80).errno == errno.ECONNREFUSED
    with counted(client.node, "SERVICE_UNKNOWN", Place.POD_EGRESS):
        assert refused_error(client.namespace, VIP, 80).errno == errno.ECONNREFUSED
    assert time.monotonic() - started < 1


def test_nothing_for_a_service_address_is_ever_routed(client: Pod) -> None:
    for payload in (UDP(sport=4000, dport=9), ICMP(type=8, id=3)):
        with counted(client.node, "SERVICE_UNKNOWN", Place.POD_EGRESS):
            assert sent_by(client, frame_from(client, VIP, payload)).action == DROP


@pytest.mark.parametrize("payload", [SYN, UDP(sport=40000, dport=80) / b"data"], ids=["tcp", "udp"])
def test_rewritten_packets_have_right_checksums(payload: TCP | UDP, client: Pod, far: Pod) -> None:
    protocol = 6 if TCP in payload else 17
    with service(client.node, VIP, 80, [(far.address, 8080)], protocol=protocol):
        outcome = sent_by(client, frame_from(client, VIP, payload))
    assert outcome.action == REDIRECT
    rewritten = inside(outcome.frame)
    assert (rewritten[IP].dst, rewritten[type(payload)].dport) == (str(far.address), 8080)
    assert checksums_hold(rewritten)


def test_an_answer_whose_translation_is_gone(client: Pod) -> None:
    loopback = "169.254.1.2"
    frame = frame_from(client, loopback, TCP(sport=80, dport=40000, flags="SA"))
    with counted(client.node, "TRANSLATION_MISSING", Place.POD_EGRESS):
        assert sent_by(client, frame).action == DROP


def test_without_the_next_program_packets_are_dropped(client: Pod) -> None:
    programs = libbpf.open_pinned(client.node.pins / "maps" / "continuations")
    slot = (1).to_bytes(4, "little")
    pinned = client.node.program("pod_service")
    try:
        libbpf.map_delete(programs, slot)
        with counted(client.node, "PROGRAM_MISSING", Place.POD_EGRESS):
            assert sent_by(client, frame_from(client, VIP, SYN)).action == DROP
    finally:
        libbpf.map_update(programs, slot, pinned.to_bytes(4, "little"))
        os.close(pinned)
        os.close(programs)


# From outside


def test_a_node_port_with_a_backend_on_the_node_keeps_the_clients_address(
    fabric: Fabric, server: Pod
) -> None:
    with (
        service(server.node, ANY_NODE, 30080, [(server.address, 8080)], scopes=BOTH),
        Echo(server.namespace, server.address, 8080, "server"),
        counted(server.node, "REPLY_TRANSLATED", Place.POD_EGRESS, 2, exactly=False),
    ):
        assert ask(fabric.outside, server.node.address, 30080) == ("server", str(fabric.OUTSIDE))


def test_a_node_port_with_a_backend_on_another_node(fabric: Fabric, node: Node, far: Pod) -> None:
    with (
        service(node, ANY_NODE, 30081, [(far.address, 8080)], scopes=BOTH),
        Echo(far.namespace, far.address, 8080, "far"),
        counted(node, "REPLY_TRANSLATED", Place.OVERLAY, 2, exactly=False),
        counted(node, "SERVICE_TRANSLATED", Place.HOST, 2, exactly=False),
    ):
        for _ in range(5):
            assert ask(fabric.outside, node.address, 30081) == ("far", str(node.router))


def test_a_node_port_served_by_the_node_itself(fabric: Fabric, node: Node) -> None:
    with (
        service(node, ANY_NODE, 30082, [(node.address, 9090)], scopes=BOTH),
        Echo(node.namespace, node.address, 9090, "host"),
        counted(node, "REPLY_TRANSLATED", Place.HOST, 2, exactly=False),
    ):
        assert ask(fabric.outside, node.address, 30082) == ("host", str(fabric.OUTSIDE))


def test_a_node_port_served_by_another_nodes_process(fabric: Fabric, node: Node, other: Node) -> None:
    with (
        service(node, ANY_NODE, 30083, [(other.address, 9090)], scopes=BOTH),
        Echo(other.namespace, other.address, 9090, "host two"),
    ):
        assert ask(fabric.outside, node.address, 30083)[0] == "host"


def test_many_clients_of_a_far_backend_are_kept_apart(fabric: Fabric, node: Node, far: Pod) -> None:
    with (
        service(node, ANY_NODE, 30081, [(far.address, 8080)], scopes=BOTH),
        listening(far.namespace, far.address, 8080) as listener,
    ):
        clients = []
        for i in range(50):
            end = fabric.outside.socket(socket.SOCK_STREAM)
            end.connect((str(node.address), 30081))
            end.sendall(f"{i:3}".encode())
            clients.append(end)
        for _ in clients:
            accepted, _ = listener.accept()
            accepted.sendall(accepted.recv(3))
            accepted.close()
        for i, end in enumerate(clients):
            assert end.recv(3) == f"{i:3}".encode()
            end.close()


def test_datagrams_to_a_node_port(fabric: Fabric, node: Node, server: Pod, far: Pod) -> None:
    for target in (server, far):
        with (
            service(node, ANY_NODE, 30053, [(target.address, 53)], protocol=17, scopes=BOTH),
            listening(target.namespace, target.address, 53, socket.SOCK_DGRAM) as listener,
            fabric.outside.socket(socket.SOCK_DGRAM) as end,
        ):
            end.connect((str(node.address), 30053))
            end.send(b"question")
            data, peer = listener.recvfrom(100)
            listener.sendto(data[::-1], peer)
            assert end.recv(100) == b"noitseuq"


def test_host_ports_belong_to_one_address(fabric: Fabric, server: Pod, other: Node) -> None:
    node = server.node
    with (
        service(
            node, node.address, 8888, [(server.address, 8080)], scopes=BOTH, flags=ServiceFlag.KEEP_SOURCE
        ),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        assert ask(fabric.outside, node.address, 8888) == ("server", str(fabric.OUTSIDE))
        assert refused_error(fabric.outside, other.address, 8888).errno == errno.ECONNREFUSED


def test_no_backend_refuses_and_no_local_backend_is_silent(fabric: Fabric, node: Node) -> None:
    with service(node, ANY_NODE, 30084, [], scopes=BOTH), counted(node, "SERVICE_NO_BACKEND", Place.HOST):
        assert refused_error(fabric.outside, node.address, 30084).errno == errno.ECONNREFUSED
    with (
        service(node, ANY_NODE, 30085, [], scopes=BOTH, flags=ServiceFlag.DROP_IF_EMPTY),
        pytest.raises(TimeoutError),
    ):
        raise refused_error(fabric.outside, node.address, 30085, timeout=0.3)


def test_policy_applies_to_clients_outside(fabric: Fabric, server: Pod) -> None:
    server.set_policy({any_key(Direction.EGRESS): ALLOW})
    with (
        service(server.node, ANY_NODE, 30080, [(server.address, 8080)], scopes=BOTH),
        Echo(server.namespace, server.address, 8080, "server"),
        counted(server.node, "POLICY_DEFAULT", Place.POD_INGRESS, exactly=False),
        pytest.raises(TimeoutError),
    ):
        raise refused_error(fabric.outside, server.node.address, 30080, timeout=0.3)


def from_outside(node: Node, payload: TCP, source: str = "192.168.77.200") -> Ether:
    return HEADER / IP(src=source, dst=str(node.address)) / payload


def test_a_far_backend_needs_the_router_address(fabric: Fabric, node: Node, far: Pod) -> None:
    config = node.config()
    frame = from_outside(node, TCP(sport=5555, dport=30086, flags="S"))
    node.maps.write_config(dataclasses.replace(config, router=UNSPECIFIED))
    try:
        with (
            service(node, ANY_NODE, 30086, [(far.address, 8080)], scopes=BOTH),
            counted(node, "NOT_CONFIGURED", Place.HOST),
        ):
            assert run(node, "host_ingress", frame, ifindex=node.namespace.index("eth0")).action == DROP
    finally:
        node.maps.write_config(config)


def test_ports_run_out_with_a_reason(node: Node, far: Pod) -> None:
    """Every port that replies of one backend could come to is taken."""
    taken = tables.Translation(
        source=node.address, destination=node.address, source_port=1, destination_port=1, ifindex=1, used=0
    )
    keys = {
        tables.TranslationKey(
            source=far.address,
            destination=node.router,
            source_port=8080,
            destination_port=port,
            protocol=6,
            kind=1,
        ): taken
        for port in range(32768, 32768 + 28000)
    }
    node.maps.translations.put_many(keys)
    try:
        with (
            service(node, ANY_NODE, 30087, [(far.address, 8080)], scopes=BOTH),
            counted(node, "TRANSLATION_FULL", Place.HOST),
        ):
            frame = from_outside(node, TCP(sport=5556, dport=30087, flags="S"))
            assert run(node, "host_ingress", frame, ifindex=node.namespace.index("eth0")).action == DROP
    finally:
        node.maps.translations.delete_many(keys)


def test_the_hosts_own_traffic_is_not_touched(node: Node) -> None:
    eth0 = node.namespace.index("eth0")
    for frame in (
        from_outside(node, TCP(sport=5555, dport=22, flags="S")),
        HEADER / IP(src="192.168.77.200", dst="192.168.77.99") / SYN,
        Ether(src=HEADER.src, dst=HEADER.dst, type=0x86DD) / (b"\x60" + bytes(60)),
    ):
        outcome = run(node, "host_ingress", frame, ifindex=eth0)
        assert (outcome.action, bytes(outcome.frame)) == (PASS, bytes(frame)), frame


def test_no_pods_address_leaves_the_node(node: Node, client: Pod) -> None:
    eth0 = node.namespace.index("eth0")
    frame = HEADER / IP(src=str(client.address), dst="198.51.100.7") / SYN
    with counted(node, "UNMASQUERADED", Place.HOST):
        assert run(node, "host_egress", frame, ifindex=eth0).action == DROP
    later = HEADER / IP(src=str(client.address), dst="198.51.100.7", frag=9, id=4, proto=17) / Raw(bytes(64))
    with counted(node, "UNMASQUERADED", Place.HOST):
        assert run(node, "host_egress", later, ifindex=eth0).action == DROP
    frame = HEADER / IP(src=str(node.address), dst="198.51.100.7") / SYN
    assert run(node, "host_egress", frame, ifindex=eth0).action == PASS


def test_a_revoked_connection_through_a_service_is_reset_at_both_ends(
    pods: Pods, client: Pod, far: Pod, fabric: Fabric
) -> None:
    from tests.bpf.test_connections import expect_reset

    with (
        service(client.node, VIP, 80, [(far.address, 8080)]),
        listening(far.namespace, far.address, 8080) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(VIP), 80))
        accepted, _ = listener.accept()
        client.set_policy({})
        end.sendall(b"x")
        expect_reset(end)
        expect_reset(accepted)
        accepted.close()
    with (
        service(far.node, ANY_NODE, 30080, [(far.address, 8080)], scopes=BOTH),
        listening(far.namespace, far.address, 8080) as listener,
        fabric.outside.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(far.node.address), 30080))
        accepted, _ = listener.accept()
        far.set_policy({})
        end.sendall(b"x")
        expect_reset(end)
        expect_reset(accepted)
        accepted.close()


def test_connections_made_before_a_service_changes_keep_their_backend(
    client: Pod, server: Pod, far: Pod
) -> None:
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        listening(server.namespace, server.address, 8080) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(VIP), 80))
        accepted, _ = listener.accept()
        with service(client.node, VIP, 80, [(far.address, 8080)]):
            end.sendall(b"still there")
            assert accepted.recv(100) == b"still there"
        accepted.close()


# ICMP errors about translated connections


def error(quoted_source: object, quoted_destination: object, ports: tuple[int, int]) -> ICMP:
    """Destination unreachable, quoting a TCP packet."""
    quoted = IPerror(src=str(quoted_source), dst=str(quoted_destination)) / TCPerror(
        sport=ports[0], dport=ports[1]
    )
    return ICMP(type=3, code=4, nexthopmtu=1300) / quoted


def quoted_tuple(frame: Packet) -> tuple[str, str, str, str, int, int]:
    """Addresses of an ICMP error and of what it quotes; its checksums must be right."""
    again = frame.copy()
    del again[IP].chksum, again[ICMP].chksum, again[IPerror].chksum
    again = Ether(bytes(again))
    for layer in (IP, ICMP, IPerror):
        assert again[layer].chksum == frame[layer].chksum, layer
    quoted = frame[IPerror]
    return (
        frame[IP].src,
        frame[IP].dst,
        quoted.src,
        quoted.dst,
        quoted.payload.sport,
        quoted.payload.dport,
    )


def test_an_error_about_a_pods_service_connection_names_the_service(client: Pod, server: Pod) -> None:
    with service(client.node, VIP, 80, [(server.address, 8080)]):
        assert sent_by(client, frame_from(client, VIP, SYN)).action == REDIRECT
        from_router = frame_to(client, "203.0.113.1", error(client.address, server.address, (40000, 8080)))
        eth0 = client.node.namespace.index("eth0")
        outcome = run(client.node, "pod_ingress", from_router, ifindex=client.index, came_by=eth0)
        assert outcome.action == PASS
        assert quoted_tuple(outcome.frame) == (
            "203.0.113.1",
            str(client.address),
            str(client.address),
            str(VIP),
            40000,
            80,
        )
        from_server = frame_from(server, client.address, error(client.address, server.address, (40000, 8080)))
        outcome = sent_by(server, from_server)
        assert outcome.action == REDIRECT
        assert quoted_tuple(outcome.frame)[0] == str(VIP)


@pytest.mark.parametrize("where", ["this node", "another node"])
def test_an_error_from_outside_about_a_node_port_reaches_the_backend(
    where: str, node: Node, server: Pod, far: Pod
) -> None:
    eth0 = node.namespace.index("eth0")
    target = server if where == "this node" else far
    client_port = 6000 if where == "this node" else 6001
    with service(node, ANY_NODE, 30090, [(target.address, 8080)], scopes=BOTH):
        request = from_outside(node, TCP(sport=client_port, dport=30090, flags="S"))
        sent = run(node, "host_ingress", request, ifindex=eth0).frame
        about = (
            HEADER
            / IP(src="203.0.113.1", dst=str(node.address))
            / error(node.address, "192.168.77.200", (30090, client_port))
        )
        outcome = run(node, "host_ingress", about, ifindex=eth0)
    assert outcome.action == (PASS if where == "this node" else REDIRECT)
    sender = "203.0.113.1" if where == "this node" else str(node.router)
    assert quoted_tuple(outcome.frame) == (
        sender,
        str(target.address),
        str(target.address),
        sent[IP].src,
        8080,
        sent[TCP].sport,
    )


def test_a_header_too_short_to_rewrite(client: Pod, server: Pod) -> None:
    """Ports are there, the checksum is not."""
    cut = bytes(frame_from(client, VIP, UDP(sport=4000, dport=53)))[: 14 + 20 + 5]
    with (
        service(client.node, VIP, 53, [(server.address, 5353)], protocol=17),
        counted(client.node, "REWRITE_FAILED", Place.POD_EGRESS),
    ):
        assert sent_by(client, cut).action == DROP


def test_sctp_is_translated_only_where_its_checksum_allows(client: Pod, server: Pod) -> None:
    """The CRC of SCTP covers the ports and not the addresses."""
    header = Raw((40000).to_bytes(2, "big") + (80).to_bytes(2, "big") + bytes(8))
    frame = frame_from(client, VIP, header, proto=132)
    with service(client.node, VIP, 80, [(server.address, 80)], protocol=132):
        outcome = sent_by(client, frame)
        assert (outcome.action, outcome.frame[IP].dst) == (REDIRECT, str(server.address))
    frame = frame_from(client, VIP + 1, header, proto=132)
    with (
        service(client.node, VIP + 1, 80, [(server.address, 8080)], protocol=132),
        counted(client.node, "REWRITE_FAILED", Place.POD_EGRESS),
    ):
        assert sent_by(client, frame).action == DROP


def test_fragments_of_a_datagram_to_a_service(client: Pod, far: Pod) -> None:
    data = bytes(range(256)) * 40
    with (
        service(client.node, VIP, 53, [(far.address, 5353)], protocol=17),
        listening(far.namespace, far.address, 5353, socket.SOCK_DGRAM) as listener,
        client.namespace.socket(socket.SOCK_DGRAM) as end,
    ):
        end.sendto(data, (str(VIP), 53))
        received, peer = listener.recvfrom(20_000)
        assert received == data
        listener.sendto(data[::-1], peer)
        received, source = end.recvfrom(20_000)
        assert (received, source) == (data[::-1], (str(VIP), 53))

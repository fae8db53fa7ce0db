"""Connections that stay plain TCP, and the reason that each has (hazards 6, 8, 18, 20, 31)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP

from datapath import attach, libbpf, reasons, tables
from datapath.constants import NamespaceFlag, Place
from datapath.maps import TypedMap
from datapath.programs import PROGRAMS
from datapath.redirect_tables import Nonce, Offer
from tests.bpf.conftest import Pods
from tests.bpf.counting import counted, hit, wait_for
from tests.bpf.fabric import OPEN, Pod
from tests.bpf.packets import frame_from
from tests.bpf.redirecting import find, pair, reason_of
from tests.bpf.sandbox import Node
from tests.bpf.talking import Connection, connected, listening, receive
from tests.bpf.test_hostile_pod import send_raw

IPPROTO_MPTCP = 262
SO_ZEROCOPY = 60
SO_RCVLOWAT = 18
SOCK_PAIR = next(item for item in PROGRAMS if item.name == "sock_pair")
LINGER_NOW = struct.pack("ii", 1, 0)


@pytest.fixture
def offers(node: Node) -> Iterator[TypedMap[Nonce, Offer]]:
    opened = TypedMap(libbpf.open_pinned(node.pins / "maps" / "offers"), Nonce, Offer)
    yield opened
    opened.delete_many([key for key, _ in opened.items()])
    opened.close()


@contextlib.contextmanager
def cgroup_folder(node: Node) -> Iterator[int]:
    folder = os.open(node.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def test_hazard_18_what_is_older_than_the_datapath_stays_plain(client: Pod, server: Pod) -> None:
    node = client.node
    program = SOCK_PAIR
    with cgroup_folder(node) as folder, node.in_cgroup():
        assert attach.detach(program, folder)
        with (
            listening(server.namespace, server.address, 80) as listener,
            client.namespace.socket(socket.SOCK_STREAM) as old,
            client.namespace.socket(socket.SOCK_STREAM) as new,
        ):
            old.connect((str(server.address), 80))
            before = listener.accept()[0]
            fd = node.program(program.name)
            attach.attach(program, fd, folder)
            new.connect((str(server.address), 80))
            after = listener.accept()[0]
            with before, after:
                Connection(old, before).echo()
                port = old.getsockname()[1]
                assert port not in {item.client_port for item in node.maps.redirect.connections()}
                Connection(new, after).echo()
                why = {
                    reason.label
                    for item in node.maps.redirect.sockets()
                    if item.client_port == new.getsockname()[1]
                    for reason in [reasons.by_number()[item.reason]]
                }
                assert why == {"NO_NONCE", "BEFORE_AGENT"}
                hit.update(why)


def foreign_program(sockets: int) -> int:
    """A sock_ops program of somebody else, that takes each client's socket into its own map."""
    code = b"".join(
        struct.pack("=BBhi", *instruction)
        for instruction in (
            (0xBF, 0x16, 0, 0),  # r6 = ctx
            (0x61, 0x12, 0, 0),  # r2 = ctx->op
            (0x55, 0x02, 8, 4),  # if not ACTIVE_ESTABLISHED, to the end
            (0x62, 0x0A, -4, 0),  # key = 0
            (0xBF, 0x61, 0, 0),
            (0x18, 0x12, 0, sockets),
            (0x00, 0x00, 0, 0),
            (0xBF, 0xA3, 0, 0),
            (0x07, 0x03, 0, -4),
            (0xB7, 0x04, 0, 0),
            (0x85, 0x00, 0, 70),  # bpf_sock_hash_update
            (0xB7, 0x00, 0, 1),
            (0x95, 0x00, 0, 0),
        )
    )
    kind = int(libbpf.ProgramType.SOCK_OPS)
    length = ctypes.c_size_t(len(code) // 8)
    return libbpf.check(
        libbpf.library().bpf_prog_load(kind, b"foreign", b"GPL", code, length, None), "foreign"
    )


def test_hazard_20_a_socket_that_another_program_holds(client: Pod, server: Pod) -> None:
    node = client.node
    sockets = libbpf.map_create(libbpf.MapType.SOCKHASH, "foreign", 4, 8, 10)
    message = node.program("message_send")
    libbpf.program_attach(message, sockets, libbpf.AttachType.SK_MSG_VERDICT)
    program = foreign_program(sockets)
    own = SOCK_PAIR
    with cgroup_folder(node) as folder:
        attach.detach(own, folder)
        libbpf.program_attach(program, folder, libbpf.AttachType.CGROUP_SOCK_OPS, libbpf.BPF_F_ALLOW_MULTI)
        try:
            attach.attach(own, node.program(own.name), folder)  # after the other
            with pair(client, server) as connection:
                assert reason_of(node, connection) == "FOREIGN_OWNER"
        finally:
            libbpf.program_detach(program, folder, libbpf.AttachType.CGROUP_SOCK_OPS)
    for fd in (program, message, sockets):
        os.close(fd)


def test_opted_out_pods_and_ports(client: Pod, server: Pod) -> None:
    node = client.node
    client.flag(NamespaceFlag.NO_REDIRECT)
    with pair(client, server) as connection:
        assert reason_of(node, connection) == "OPTED_OUT"
    client.flag(NamespaceFlag.NONE)
    server.flag(NamespaceFlag.NO_REDIRECT)
    with pair(client, server) as connection:
        assert reason_of(node, connection) == "OPTED_OUT"
    server.flag(NamespaceFlag.NONE)
    node.write_config(plain_ports=[80])
    try:
        node.loader("up")
        with pair(client, server) as connection:
            assert reason_of(node, connection) == "OPTED_OUT"
        with pair(client, server, port=81) as connection:
            assert find(node, connection).accelerated
    finally:
        node.write_config()
        node.loader("up")


def test_a_pod_of_another_node_is_not_local(client: Pod, far: Pod) -> None:
    with client.node.in_cgroup(), connected(client.namespace, far, far.address) as connection:
        assert reason_of(client.node, connection) == "PEER_NOT_LOCAL"


def test_a_server_outside_the_nodes_cgroup_has_no_nonce(client: Pod, server: Pod) -> None:
    node = client.node
    with (
        listening(server.namespace, server.address, 80) as listener,
        node.in_cgroup(),
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(server.address), 80))
        accepted, _ = listener.accept()
        with accepted:
            assert reason_of(node, Connection(end, accepted)) == "NO_NONCE"


def test_a_nonce_of_another_pod_is_not_believed(
    client: Pod, server: Pod, pods: Pods, node: Node, offers: TypedMap[Nonce, Offer]
) -> None:
    """A pod that may send raw packets guesses the nonce of a victim's SYN and uses it in its own."""
    victim = pods(node, 1003)
    nonce = Nonce(nonce=0x1122334455667788)
    offer = Offer(
        cookie=1,
        space=victim.namespace.cookie(),
        client=victim.address,
        server=server.address,
        client_port=4000,
        server_port=80,
        generation=1,
        client_endpoint=victim.id,
        server_endpoint=server.id,
        seen=0,
        enrolled=0,
        reason=0,
    )
    offers.put(nonce, offer)
    option = (254, b"\x0d\xa7" + nonce.pack())
    syn = TCP(sport=4000, dport=80, flags="S", seq=1, options=[("MSS", 1400), option])
    with (
        node.in_cgroup(),
        listening(server.namespace, server.address, 80),
        counted(node, "NONCE_FOREIGN", Place.SOCKET, exactly=False),
    ):
        send_raw(client, frame_from(client, server.address, syn))
    assert offers.get(nonce) == offer


def test_syn_cookies_leave_plain_tcp(client: Pod, server: Pod, offers: TypedMap[Nonce, Offer]) -> None:
    """A listener under a flood keeps nothing of a SYN, so the nonce is lost; no offer is left behind."""
    server.namespace.write_sysctl("ipv4/tcp_syncookies", "2")
    with pair(client, server) as connection:
        assert reason_of(client.node, connection) == "NO_NONCE"
        assert not offers.read()


def test_no_offer_outlives_its_connection(client: Pod, server: Pod, offers: TypedMap[Nonce, Offer]) -> None:
    node = client.node
    server.set_policy({})
    with node.in_cgroup(), client.namespace.socket(socket.SOCK_STREAM) as end:
        end.setblocking(False)
        end.connect_ex((str(server.address), 80))
        assert len(offers.read()) == 1  # the SYN is on its way
    wait_for(lambda: not offers.read(), "the offer went with its socket")
    server.set_policy(OPEN)
    with pair(client, server) as connection:
        connection.echo()
        assert not offers.read()


def test_a_table_of_offers_that_is_full_leaves_plain_tcp(
    client: Pod, server: Pod, offers: TypedMap[Nonce, Offer]
) -> None:
    blank = Offer.unpack(bytes(Offer.size()))
    offers.put_many({Nonce(nonce=number): blank for number in range(1, 16385)})
    with pair(client, server) as connection:
        assert reason_of(client.node, connection) == "REDIRECT_FULL"


def test_hazard_31_mptcp_is_left_alone(client: Pod, server: Pod) -> None:
    node = client.node
    with (
        node.in_cgroup(),
        server.namespace.socket(socket.SOCK_STREAM, protocol=IPPROTO_MPTCP) as listener,
        client.namespace.socket(socket.SOCK_STREAM, protocol=IPPROTO_MPTCP) as multipath,
        client.namespace.socket(socket.SOCK_STREAM) as plain,
    ):
        listener.bind((str(server.address), 80))
        listener.listen()
        multipath.connect((str(server.address), 80))
        accepted, _ = listener.accept()
        with accepted:
            assert reason_of(node, Connection(multipath, accepted)) == "MPTCP"
        plain.connect((str(server.address), 80))
        accepted, _ = listener.accept()
        with accepted:
            connection = Connection(plain, accepted)
            connection.echo()
            assert find(node, connection).accelerated


@pytest.mark.parametrize(
    ("option", "value", "label"),
    [(SO_ZEROCOPY, 1, "OPTION_ZEROCOPY"), (SO_RCVLOWAT, 10, "OPTION_LOWAT")],
    ids=["hazard_06_zerocopy", "hazard_08_rcvlowat"],
)
@pytest.mark.parametrize("at_client", [True, False], ids=["client", "server"])
def test_options_that_redirect_would_break(
    option: int, value: int, label: str, at_client: bool, client: Pod, server: Pod
) -> None:
    """Set before the connection is there, it is left to TCP; a listener's options are its children's."""
    node = client.node
    with (
        node.in_cgroup(),
        listening(server.namespace, server.address, 80) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        (end if at_client else listener).setsockopt(socket.SOL_SOCKET, option, value)
        end.connect((str(server.address), 80))
        accepted, _ = listener.accept()
        with accepted:
            end.sendall(b"twelve bytes")
            assert receive(accepted, 12) == b"twelve bytes"
            found = find(node, Connection(end, accepted))
            assert not found.accelerated
            assert found.reason and found.reason.label == label
            hit.add(label)


def test_policy_that_asks_for_more_than_a_port_stays_with_tcp(client: Pod, server: Pod) -> None:
    rules = {
        tables.PolicyKey(prefix=40, identity=0, direction=direction): tables.PolicyEntry(
            verdict=1, rule_set=7
        )
        for direction in (0, 1)
    }
    server.set_policy(rules)
    with pair(client, server) as connection:
        assert reason_of(client.node, connection) == "NEEDS_PROXY"

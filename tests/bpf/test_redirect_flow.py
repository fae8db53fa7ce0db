"""Streams through redirect: nothing lost, nothing reordered, memory bounded, upgrades unseen."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import select
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath import libbpf, reasons
from datapath.constants import Place
from tests.bpf.counting import counted, events, hit, wait_for
from tests.bpf.fabric import OPEN, Fabric, Pod
from tests.bpf.redirecting import find, pair, redirect_config, unread, wait_until_accelerated
from tests.bpf.sandbox import Node, Sandbox
from tests.bpf.streaming import key_of
from tests.bpf.talking import Connection, listening, receive

MEGABYTE = 1 << 20
TCP_DEFER_ACCEPT = 9
TCP_FASTOPEN = 23
MSG_FASTOPEN = 0x20000000
LINGER_NOW = struct.pack("ii", 1, 0)


def waiting(end: socket.socket) -> int:
    """FIONREAD."""
    return int(struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, b"\0" * 4))[0])


def in_recv(thread: threading.Thread) -> bool:
    """Whether it waits in recvfrom(), which is number 45 on x86-64."""
    return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().startswith("45 ")


def blocked_read(end: socket.socket) -> tuple[threading.Thread, list[bytes | int | None]]:
    """A thread that waits in one recv() of `end`; what it gets, or the errno, is then in the list."""
    seen: list[bytes | int | None] = []

    def read() -> None:
        try:
            seen.append(end.recv(10))
        except OSError as error:
            seen.append(error.errno)

    end.settimeout(None)
    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: in_recv(thread), "the read is blocked")
    return thread, seen


def fill(end: socket.socket, limit: int) -> int:
    """Send without waiting until the socket takes no more, or `limit` bytes are gone; how many went."""
    end.setblocking(False)
    sent = 0
    try:
        while sent < limit:
            sent += end.send(b"x" * 4096)
    except BlockingIOError:
        pass
    finally:
        end.settimeout(5)
    return sent


def test_hazard_01_a_stopped_reader_stops_its_sender(client: Pod, server: Pod) -> None:
    """Unread bytes: at most the budget redirected, the rest waits in TCP, which blocks."""
    node = client.node
    limit = 64 * MEGABYTE
    with redirect_config(node, on=False), pair(client, server) as plain:
        by_tcp = fill(plain.client, limit)
    budget = node.config().redirect_budget * 1024
    with pair(client, server) as connection, counted(node, "READER_BEHIND", Place.SOCKET, exactly=False):
        sent = fill(connection.client, limit)
        found = find(node, connection).from_client
        assert found.bytes <= budget
        assert sent <= budget + 2 * by_tcp < limit
        assert receive(connection.server, sent) == b"x" * sent
        wait_for(lambda: unread(node, connection) <= 4096, "all is read")
        connection.client.sendall(b"again")
        assert receive(connection.server, 5) == b"again"
        assert find(node, connection).from_client.messages > found.messages


def test_hazard_02_order_holds_between_the_two_ways(client: Pod, server: Pod) -> None:
    """A stream with a slow and a fast reader by turns goes to TCP and comes back, in order."""
    node = client.node
    data = os.urandom(8 * MEGABYTE)
    with redirect_config(node, budget=64), pair(client, server) as connection:
        got = hashlib.sha256()
        position = read_bytes = 0

        def read() -> None:
            nonlocal read_bytes
            step = 0
            while read_bytes < len(data):
                step += 1
                more = connection.server.recv(300_000 if step % 20 == 0 else 1000)
                got.update(more)
                read_bytes += len(more)

        thread = threading.Thread(target=read)
        thread.start()
        for size in itertools.cycle((1, 10, 100, 1000, 10_000, 100_000)):
            if position >= len(data):
                break
            connection.client.sendall(data[position : position + size])
            position = min(position + size, len(data))
            if size == 100_000:
                wait_for(lambda: read_bytes == position, "the reader has caught up")  # noqa: B023
        thread.join(30)
        assert got.digest() == hashlib.sha256(data).digest()
        found = find(node, connection).from_client
        assert found.messages > 10 < found.tcp_messages


def test_hazard_03_fionread_counts_bytes_of_both_ways(client: Pod, server: Pod) -> None:
    node = client.node
    with pair(client, server) as connection:
        connection.client.sendall(b"redirected")
        assert waiting(connection.server) == 10
        assert connection.server.recv(100) == b"redirected"
        with redirect_config(node, on=False):
            connection.client.sendall(b"by TCP")
            wait_for(lambda: waiting(connection.server) == 6, "FIONREAD tells of bytes that came by TCP")
        assert connection.server.recv(100) == b"by TCP"
        assert waiting(connection.server) == 0


def test_hazard_30_a_server_that_defers_accept(client: Pod, server: Pod) -> None:
    """Its socket is made by the client's first data: too late to be enrolled, so neither redirects."""
    node = client.node
    with (
        node.in_cgroup(),
        listening(server.namespace, server.address, 80) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        listener.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 5)
        end.connect((str(server.address), 80))
        end.sendall(b"first")
        end.sendall(b" second")
        accepted, _ = listener.accept()
        with accepted:
            assert receive(accepted, 12) == b"first second"
            connection = Connection(end, accepted)
            connection.echo(b"and on")
            found = find(node, connection)
            assert not found.accelerated
            assert found.reason and found.reason.label == "SENT_FIRST"
            hit.add("SENT_FIRST")
            assert found.from_client.messages == 0


@pytest.mark.parametrize("more", [0, socket.MSG_MORE], ids=["plain", "msg_more"])
def test_hazard_33_a_send_that_began_before_the_connection(more: int, client: Pod, server: Pod) -> None:
    """It goes by TCP, perhaps held back by a cork; the next send must not overtake it."""
    node = client.node
    server.set_policy({})  # the first SYN is lost
    with (
        node.in_cgroup(),
        listening(server.namespace, server.address, 80) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.setblocking(False)
        assert end.connect_ex((str(server.address), 80))
        end.setblocking(True)
        thread = threading.Thread(target=end.send, args=(b"A" * 1000, more))
        thread.start()
        server.set_policy(OPEN)
        thread.join(10)
        wait_until_accelerated(node, Connection(end, end))
        end.sendall(b"B" * 1000)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            assert receive(accepted, 2000) == b"A" * 1000 + b"B" * 1000
            connection = Connection(end, accepted)
            wait_for(lambda: unread(node, connection) == 0, "all is read")
            connection.echo()
            found = find(node, connection)  # the SYN that was sent again carried the same nonce
            assert found.accelerated
            assert found.from_client.tcp_bytes >= 1000
            assert found.from_client.messages >= 1


def test_hazard_33_fast_open(client: Pod, server: Pod) -> None:
    node = client.node
    for pod in (client, server):
        pod.namespace.write_sysctl("ipv4/tcp_fastopen", "3")
    with node.in_cgroup(), listening(server.namespace, server.address, 80) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        for _ in range(3):  # the first asks for the cookie, the others send data in the SYN
            with client.namespace.socket(socket.SOCK_STREAM) as end:
                end.settimeout(None)
                end.sendto(b"A" * 1000, MSG_FASTOPEN, (str(server.address), 80))
                end.sendall(b"B" * 1000)
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(5)
                    assert receive(accepted, 2000) == b"A" * 1000 + b"B" * 1000


def test_an_accelerated_connection_is_reported_with_its_totals(client: Pod, server: Pod) -> None:
    node = client.node
    with (
        events(node) as found,
        counted(node, "ACCELERATED_CLOSED", Place.SOCKET, exactly=False),
        pair(client, server) as connection,
    ):
        connection.echo(b"x" * 1000)
    by_label = {reasons.by_number()[event.reason].label: event for event in found}
    assert by_label["ACCELERATED"].place == Place.SOCKET
    ended = by_label["ACCELERATED_CLOSED"]
    assert (ended.messages, ended.bytes) == (2, 2000)
    assert ended.latency > 0
    assert {ended.local, ended.peer} == {client.address, server.address}


@pytest.fixture(scope="module")
def apart(sandbox: Sandbox) -> Iterator[Fabric]:
    """A node of its own: these tests upgrade it and take it down."""
    made = Fabric(sandbox, ["redirect"])
    yield made
    made.nodes[0].loader("down")
    made.close()


@pytest.fixture
def couple(apart: Fabric) -> Iterator[tuple[Pod, Pod]]:
    node = apart.nodes[0]
    made = apart.pod(node, 1001), apart.pod(node, 1002)
    yield made
    for pod in made:
        apart.remove(pod)


def program_id(node: Node, name: str) -> int:
    fd = node.program(name)
    try:
        return libbpf.program_info(fd).id
    finally:
        os.close(fd)


def test_hazard_32_an_upgrade_reaches_open_connections(couple: tuple[Pod, Pod]) -> None:
    """New programs in place of the old ones, under a stream: no byte is lost, and the new one runs."""
    client, server = couple
    node = client.node
    data = os.urandom(1 << 16)
    with pair(client, server) as connection:
        connection.echo()
        before = program_id(node, "message_send")
        stop = threading.Event()
        rounds: list[int] = []

        def stream() -> None:
            while not stop.is_set():
                connection.client.sendall(data)
                assert receive(connection.server, len(data)) == data
                rounds.append(1)

        thread = threading.Thread(target=stream)
        thread.start()
        node.loader("up", "--force")
        done = len(rounds)
        wait_for(lambda: len(rounds) > done + 10 or not thread.is_alive(), "the stream goes on")
        stop.set()
        thread.join()
        assert program_id(node, "message_send") != before
        found = find(node, connection)
        assert found.accelerated
        assert found.from_client.reason is None and found.from_client.unread == 0
        messages = found.from_client.messages
        connection.echo()
        assert find(node, connection).from_client.messages == messages + 1


def test_hazard_12_taking_it_away_loses_no_unread_byte(apart: Fabric) -> None:
    node = apart.nodes[0]
    client, server = apart.pod(node, 1001), apart.pod(node, 1002)
    with pair(client, server) as connection:
        connection.client.sendall(b"x" * 100_000)
        result = json.loads(node.loader("down").stdout)
        assert result["accelerated"] == [
            {
                "client": "{}:{}".format(*connection.client.getsockname()),
                "server": f"{server.address}:80",
                "unread": 100_000,
            }
        ]
        assert receive(connection.server, 100_000) == b"x" * 100_000
    for pod in (client, server):
        with node.namespace.netlink() as netlink:
            netlink.link("del", index=pod.index)
        pod.namespace.close()
    node.up()


def test_hazard_12_a_socket_taken_out_of_the_map_breaks_a_blocked_read(client: Pod, server: Pod) -> None:
    """Why a sender does not leave while somebody waits to read from it. The byte is late, not lost."""
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        thread, seen = blocked_read(connection.client)
        mine = key_of(node, connection)
        sockets = libbpf.open_pinned(node.pins / "maps" / "sockets")
        libbpf.map_delete(sockets, mine.pack())
        os.close(sockets)
        connection.server.sendall(b"late")
        thread.join(5)
        assert seen == [errno.EAGAIN]
        assert receive(connection.client, 4) == b"late"


def test_hazard_34_a_reset_wakes_a_blocked_reader(client: Pod, server: Pod) -> None:
    """Plain TCP answers ECONNRESET at once; an enrolled socket may say EAGAIN first, never data or EOF."""
    with pair(client, server) as connection:
        connection.echo()
        connection.server.settimeout(None)
        seen: list[int | None] = []

        def read() -> None:
            for _ in range(2):
                try:
                    seen.append(len(connection.server.recv(10)))
                except OSError as error:
                    seen.append(error.errno)

        thread = threading.Thread(target=read)
        thread.start()
        select.select([], [], [], 0.05)
        connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOW)
        connection.client.close()
        thread.join(5)
        assert seen in ([104, 0], [11, 104])


def test_hazard_35_a_server_that_was_sent_to_before_accept(client: Pod, server: Pod) -> None:
    """Redirected bytes wait in the socket before it is accepted, and FIONREAD counts them."""
    node = client.node
    with (
        node.in_cgroup(),
        listening(server.namespace, server.address, 80) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(server.address), 80))
        wait_until_accelerated(node, Connection(end, end))
        end.sendall(b"early")
        accepted, _ = listener.accept()
        with accepted:
            assert waiting(accepted) == 5
            assert accepted.recv(100) == b"early"

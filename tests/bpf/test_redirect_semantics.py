"""What programs do with sockets, redirected and by plain TCP, the oracle (hazards 4, 5, 7, 9, 11, 13, 34).

Most of it is the same both ways. Where it is not, the difference is pinned here and told in the
datapath's README.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.counting import wait_for
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find, pair, redirect_config
from tests.bpf.talking import Connection, receive
from tests.bpf.test_redirect_flow import fill, in_recv, waiting
from tests.sizes import SIZES

BOTH = pytest.mark.parametrize("redirected", [True, False], ids=["redirected", "plain"])
MEGABYTE = 1 << 20


@contextlib.contextmanager
def talking(client: Pod, server: Pod, redirected: bool) -> Iterator[Connection]:
    """A connection that is accelerated, or plain TCP."""
    with redirect_config(client.node, on=redirected), pair(client, server) as connection:
        connection.echo()
        assert find(client.node, connection).accelerated == redirected
        yield connection


@BOTH
def test_hazard_04_edge_triggered_epoll_misses_no_message(client: Pod, server: Pod, redirected: bool) -> None:
    """Each message wakes a reader that had read all before it: one edge, one wake-up, none lost."""
    with talking(client, server, redirected) as connection, select.epoll() as poll:
        connection.server.setblocking(False)
        poll.register(connection.server, select.EPOLLIN | select.EPOLLET)
        poll.poll(0)
        for number in range(SIZES.redirect_wakeups):
            message = b"x" * (1 + number * 37 % 5000)
            connection.client.sendall(message)
            got = 0
            while got < len(message):
                assert poll.poll(5), f"message {number} woke nobody"
                with contextlib.suppress(BlockingIOError):
                    while True:
                        got += len(connection.server.recv(1000))
            assert got == len(message)


@BOTH
def test_hazard_04_edges_of_close_and_room_arrive(client: Pod, server: Pod, redirected: bool) -> None:
    with talking(client, server, redirected) as connection, select.epoll() as poll:
        connection.client.setblocking(False)
        events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
        poll.register(connection.client, events)
        assert poll.poll(5)[0][1] & select.EPOLLOUT
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 * MEGABYTE:
                sent += connection.client.send(b"x" * 65536)
        assert sent < 64 * MEGABYTE
        assert receive(connection.server, sent) == b"x" * sent
        assert poll.poll(5)[0][1] & select.EPOLLOUT, "nobody was told that there is room again"
        connection.server.shutdown(socket.SHUT_WR)
        wait_for(lambda: any(event & select.EPOLLRDHUP for _, event in poll.poll(0.1)), "the end is an edge")
        assert connection.client.recv(1) == b""


def test_hazard_05_splice_of_a_redirected_stream(client: Pod, server: Pod) -> None:
    """Plain TCP splices. What is redirected cannot be spliced (EAGAIN), and is there for recv() all the same.

    A relay that splices opts out, by pod or by port.
    """

    def spliced(connection: Connection) -> bytes | None:
        connection.client.sendall(b"data")
        wait_for(lambda: waiting(connection.server) == 4, "the data is there")
        connection.server.setblocking(False)
        reader, writer = os.pipe()
        try:
            os.splice(connection.server.fileno(), writer, 4, flags=os.SPLICE_F_NONBLOCK)
            return os.read(reader, 10)
        except BlockingIOError:
            return None
        finally:
            os.close(reader)
            os.close(writer)

    with talking(client, server, redirected=False) as plain:
        assert spliced(plain) == b"data"
    with talking(client, server, redirected=True) as connection:
        assert spliced(connection) is None
        assert connection.server.recv(10) == b"data"


def test_hazard_07_a_read_that_waits_for_all(client: Pod, server: Pod) -> None:
    """Plain TCP waits; a redirected read returns what is there. Nothing is lost, the next one goes on."""

    def parts(connection: Connection) -> list[bytes]:
        connection.server.settimeout(None)  # with a timeout, Python reads without waiting
        connection.client.sendall(b"first")
        wait_for(lambda: waiting(connection.server) == 5, "the first half is there")
        got: list[bytes] = []

        def read() -> None:
            while sum(map(len, got)) < 10:
                got.append(connection.server.recv(10 - sum(map(len, got)), socket.MSG_WAITALL))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(0.1)  # the reader waits for more, or has the first half
        connection.client.sendall(b"other")
        reader.join(5)
        return got

    with talking(client, server, redirected=False) as plain:
        assert parts(plain) == [b"firstother"]
    with talking(client, server, redirected=True) as connection:
        assert parts(connection) == [b"first", b"other"]


def test_hazard_09_urgent_data(client: Pod, server: Pod) -> None:
    """Plain TCP keeps the urgent byte apart; redirected, it joins the stream at its place."""

    def sent_urgent(connection: Connection, expected: int) -> bytes:
        connection.client.sendall(b"ab")
        connection.client.send(b"!", socket.MSG_OOB)
        connection.client.sendall(b"cd")
        return receive(connection.server, expected)

    with talking(client, server, redirected=False) as plain:
        data = sent_urgent(plain, 4)
        assert data == b"abcd"
    with talking(client, server, redirected=True) as connection:
        assert sent_urgent(connection, 5) == b"ab!cd"


def test_hazard_11_a_peer_that_closes_with_unread_data(client: Pod, server: Pod) -> None:
    """Plain TCP tells that data was not read (ECONNRESET); redirected, it is an end of stream."""

    def end_of(connection: Connection) -> str:
        connection.client.sendall(b"never read")
        wait_for(lambda: waiting(connection.server) == 10, "it has arrived")
        connection.server.close()
        try:
            return "end" if connection.client.recv(10) == b"" else "data"
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    with talking(client, server, redirected=False) as plain:
        assert end_of(plain) == "ECONNRESET"
    with talking(client, server, redirected=True) as connection:
        assert end_of(connection) == "end"


@contextlib.contextmanager
def blocked_read(end: socket.socket) -> Iterator[tuple[threading.Thread, list[int | bytes | None]]]:
    """A thread that waits in recv(); what came of it: data, or an error's number."""
    end.settimeout(None)
    seen: list[int | bytes | None] = []

    def read() -> None:
        try:
            seen.append(end.recv(10))
        except OSError as error:
            seen.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: in_recv(reader), "the read is blocked")
    yield reader, seen
    reader.join(5)
    end.settimeout(5)


@BOTH
def test_hazard_34_room_for_a_sender_wakes_a_blocked_reader_too(
    client: Pod, server: Pod, redirected: bool
) -> None:
    """Its send buffer full, who waits to read an accelerated socket is told EAGAIN when there is room."""
    with talking(client, server, redirected) as connection:
        sent = fill(connection.client, 64 * MEGABYTE)
        with blocked_read(connection.client) as (reader, seen):
            assert receive(connection.server, sent) == b"x" * sent
            wait_for(lambda: bool(select.select([], [connection.client], [], 0)[1]), "there is room again")
            if not redirected:
                assert reader.is_alive()
                connection.server.sendall(b"late")
        assert seen == ([errno.EAGAIN] if redirected else [b"late"])
        connection.echo()


@BOTH
def test_hazard_34_the_end_of_ones_own_half_wakes_a_blocked_reader(
    client: Pod, server: Pod, redirected: bool
) -> None:
    """EAGAIN, where the end of what the socket itself sends waited behind bytes left to TCP."""
    size = client.node.config().redirect_budget * 1024 if redirected else 0
    with talking(client, server, redirected) as connection:
        connection.client.sendall(b"x" * size)
        connection.client.sendall(b"y" * 50_000)
        connection.client.shutdown(socket.SHUT_WR)
        with blocked_read(connection.client) as (reader, seen):
            assert receive(connection.server, size + 50_001) == b"x" * size + b"y" * 50_000
            if not redirected:
                assert reader.is_alive()
                connection.server.sendall(b"late")
        assert seen == ([errno.EAGAIN] if redirected else [b"late"])


@BOTH
@pytest.mark.parametrize("first", ["client", "server"])
def test_hazard_13_half_a_connection_stays_open(
    client: Pod, server: Pod, redirected: bool, first: str
) -> None:
    with talking(client, server, redirected) as connection:
        ends = [connection.client, connection.server]
        closing, going_on = ends if first == "client" else ends[::-1]
        closing.sendall(b"last words")
        closing.shutdown(socket.SHUT_WR)
        assert receive(going_on, 100) == b"last words"
        for number in range(100):
            going_on.sendall(b"%d " % number * 100)
            assert receive(closing, len(b"%d " % number) * 100) == b"%d " % number * 100
        going_on.close()
        assert closing.recv(10) == b""


@BOTH
def test_hazard_13_a_close_right_after_sending_loses_nothing(
    client: Pod, server: Pod, redirected: bool
) -> None:
    data = os.urandom(200_000)
    with talking(client, server, redirected) as connection:

        def send_and_close() -> None:
            connection.client.sendall(data)
            connection.client.close()

        closer = threading.Thread(target=send_and_close)
        closer.start()
        assert receive(connection.server, len(data) + 1) == data
        closer.join(5)


@BOTH
def test_hazard_13_a_peek_takes_nothing(client: Pod, server: Pod, redirected: bool) -> None:
    with talking(client, server, redirected) as connection:
        connection.client.sendall(b"peek at me")
        for size in (4, 10, 10):
            wait_for(lambda: waiting(connection.server) == 10, "all is there, before and after a peek")
            assert connection.server.recv(size, socket.MSG_PEEK) == b"peek at me"[:size]
        assert receive(connection.server, 10) == b"peek at me"
        connection.echo(b"and on")


@BOTH
def test_hazard_13_sendfile_arrives_whole(client: Pod, server: Pod, redirected: bool, tmp_path: Path) -> None:
    data = os.urandom(4 * MEGABYTE + 17)
    file = tmp_path / "file"
    file.write_bytes(data)
    with talking(client, server, redirected) as connection, file.open("rb") as source:
        digest = hashlib.sha256()

        def read() -> None:
            left = len(data)
            while left and (more := connection.server.recv(min(left, 65536))):
                digest.update(more)
                left -= len(more)

        reader = threading.Thread(target=read)
        reader.start()
        connection.client.settimeout(None)  # with a timeout, the socket does not wait
        sent = 0
        while sent < len(data):
            sent += os.sendfile(connection.client.fileno(), source.fileno(), sent, len(data) - sent)
        reader.join(30)
        assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
        connection.echo(b"and on")

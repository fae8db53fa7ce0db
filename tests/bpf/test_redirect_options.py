"""Socket options that are set on a connection that is accelerated already (hazards 6, 8, 26)."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from datapath.constants import Place
from tests.bpf.counting import counted, wait_for
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find, pair, redirect_config
from tests.bpf.talking import receive

SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
TCP_ULP = 31


def test_hazard_06_zero_copy_completions_arrive(client: Pod, server: Pod) -> None:
    """From then on the sender's direction is TCP's; the other one is redirected still."""
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        connection.client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        with counted(node, "OPTION_ZEROCOPY", Place.SOCKET):
            connection.client.send(b"x" * 20_000, MSG_ZEROCOPY)
        assert receive(connection.server, 20_000) == b"x" * 20_000
        poll = select.poll()
        poll.register(connection.client, 0)
        assert poll.poll(1000) == [(connection.client.fileno(), select.POLLERR)]
        _, messages, _, _ = connection.client.recvmsg(10, 100, socket.MSG_ERRQUEUE)
        assert messages
        connection.server.sendall(b"back")
        assert receive(connection.client, 4) == b"back"
        assert find(node, connection).from_server.messages == 2


def test_hazard_08_a_low_water_mark_set_later(client: Pod, server: Pod) -> None:
    """What the reader is sent goes by TCP until the mark is 1 again."""
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        connection.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        with counted(node, "OPTION_LOWAT", Place.SOCKET):
            connection.client.sendall(b"enough, by TCP")
        assert receive(connection.server, 14) == b"enough, by TCP"
        connection.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        wait_for(lambda: find(node, connection).from_client.unread == 0, "all is read")
        connection.client.sendall(b"redirected")
        assert receive(connection.server, 10) == b"redirected"
        assert find(node, connection).from_client.messages == 2


def set_kernel_tls(end: socket.socket) -> int:
    """Errno of asking for kernel TLS, 0 when it was given."""
    try:
        end.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as error:
        assert error.errno
        return error.errno
    return 0


def test_hazard_26_kernel_tls_and_redirect_never_mix(client: Pod, server: Pod) -> None:
    """An accelerated socket gets none; a plain one gets what the kernel has."""
    node = client.node
    with redirect_config(node, on=False), pair(client, server) as connection:
        assert set_kernel_tls(connection.client) in (0, errno.ENOENT)
    with pair(client, server) as connection:
        assert set_kernel_tls(connection.client) == errno.EOPNOTSUPP
        connection.echo()


@pytest.mark.parametrize("mark", [1, 10])
def test_hazard_08_poll_honours_the_mark_as_plain_tcp_does(mark: int, client: Pod, server: Pod) -> None:
    node = client.node
    answers = []
    for on in (False, True):
        with redirect_config(node, on=on), pair(client, server) as connection:
            connection.echo()
            connection.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
            connection.client.sendall(b"12345")
            poll = select.poll()
            poll.register(connection.server, select.POLLIN)
            answers.append(poll.poll(200))
    assert [bool(found) for found in answers] == [mark == 1, mark == 1]

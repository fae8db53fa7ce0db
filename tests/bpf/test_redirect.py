"""Two pods of one node talk from socket to socket."""

from __future__ import annotations

from datapath.constants import Place
from tests.bpf.counting import counted
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find, pair, reason_of, redirect_config, tcp_packets


def test_hazard_24_no_packet_moves_and_own_counters_tell_what_does(client: Pod, server: Pod) -> None:
    node = client.node
    with counted(node, "ACCELERATED", Place.SOCKET), pair(client, server) as connection:
        before = tcp_packets(client.node, connection)
        with counted(node, "REDIRECTED", Place.SOCKET, 200):
            for _ in range(100):
                connection.echo(b"x" * 1000)
        assert tcp_packets(client.node, connection) == before
        found = find(node, connection)
        assert found.accelerated and found.reason is None
        assert (found.client, found.server) == (client.address, server.address)
        assert (found.client_endpoint, found.server_endpoint) == (client.id, server.id)
        for direction in (found.from_client, found.from_server):
            assert (direction.messages, direction.bytes, direction.unread) == (100, 100_000, 0)
            assert direction.tcp_bytes == 0
            assert direction.latency_samples > 0


def test_switched_off_it_is_plain_tcp(client: Pod, server: Pod) -> None:
    node = client.node
    with redirect_config(node, on=False), pair(client, server) as connection:
        before = tcp_packets(client.node, connection)
        connection.echo(b"x" * 1000)
        assert tcp_packets(client.node, connection) > before
        assert reason_of(node, connection) == "REDIRECT_OFF"

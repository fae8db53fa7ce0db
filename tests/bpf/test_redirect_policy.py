"""Policy holds for bytes that no packet filter sees (hazards 23, 25)."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from datapath.constants import Direction, Place
from datapath.nudge import nudge
from datapath.tables import FlowKey
from tests.bpf.counting import counted, wait_for
from tests.bpf.fabric import ALLOW, OPEN, Pod, any_key, port_key
from tests.bpf.redirecting import find, pair, tcp_packets
from tests.bpf.test_connections import expect_reset

CLOSED = {any_key(Direction.EGRESS): ALLOW}


def nudge_stale(pod: Pod) -> int:
    """As the agent does."""
    revision = pod.node.maps.policies.revision(pod.id)
    stale = pod.node.maps.conntrack.stale({pod.id: revision})
    with pod.node.namespace.entered():
        nudge([(key, pod.entry()) for key in stale])
    return len(stale)


@pytest.mark.parametrize("speaker", ["client", "server"])
def test_hazard_23_a_speaking_connection_is_reset_when_policy_denies_it(
    speaker: str, client: Pod, server: Pod
) -> None:
    with pair(client, server) as connection:
        connection.echo()
        server.set_policy(CLOSED)
        end = connection.client if speaker == "client" else connection.server
        with counted(client.node, "POLICY_MOVED", Place.SOCKET):
            end.send(b"must not arrive")
        expect_reset(connection.client)
        expect_reset(connection.server)


@pytest.mark.parametrize("denying", ["client", "server"])
def test_hazard_23_an_idle_connection_is_reset_when_policy_denies_it(
    denying: str, client: Pod, server: Pod
) -> None:
    """Its sequence numbers are those of the handshake, so the agent's nudge works as ever."""
    with pair(client, server) as connection:
        connection.echo(b"x" * 100_000)
        pod = client if denying == "client" else server
        pod.set_policy({})
        assert nudge_stale(pod)
        expect_reset(connection.client)
        expect_reset(connection.server)


def test_hazard_23_a_streaming_connection_is_reset_within_a_second(client: Pod, server: Pod) -> None:
    with pair(client, server) as connection:
        connection.echo()
        ended: list[float] = []

        def stream() -> None:
            try:
                while True:
                    connection.client.sendall(b"x" * 1000)
                    connection.server.recv(100_000)
            except OSError:
                ended.append(time.monotonic())

        thread = threading.Thread(target=stream)
        thread.start()
        wait_for(lambda: find(client.node, connection).from_client.messages > 100, "the stream runs")
        denied = time.monotonic()
        server.set_policy(CLOSED)
        thread.join(5)
        assert ended and ended[0] - denied < 1


def test_hazard_23_a_change_that_allows_it_leaves_it_alone(client: Pod, server: Pod) -> None:
    with pair(client, server) as connection:
        connection.echo()
        before = tcp_packets(client.node, connection)
        for _ in range(10):
            server.set_policy({port_key(Direction.INGRESS, 6, 80, client.identity): ALLOW, **CLOSED})
            client.set_policy(OPEN)
            connection.echo()
        assert tcp_packets(client.node, connection) == before
        found = find(client.node, connection)
        assert found.accelerated and found.from_client.messages == 11


def test_hazard_25_connection_tracking_does_not_forget_a_busy_connection(client: Pod, server: Pod) -> None:
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        soon = time.monotonic_ns() + 10**9

        def entries() -> dict[FlowKey, int]:
            port = connection.client.getsockname()[1]
            return {
                key: entry.expires
                for key, entry in node.maps.conntrack.items()
                if port in (key.local_port, key.peer_port)
            }

        assert len(entries()) == 2
        conntrack = node.maps.conntrack
        for key, entry in list(conntrack.items()):
            if key in entries():
                conntrack.put(key, dataclasses.replace(entry, expires=soon))
        streams = node.maps.redirect.streams
        for name, stream in streams.read().items():
            streams.put(name, dataclasses.replace(stream, refreshed=0))
        connection.echo()
        assert min(entries().values()) > soon

"""A policy is replaced in one step: while it happens nobody sees neither the old nor the new one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from datapath import tables
from datapath.constants import Direction
from tests.bpf.counting import wait_for
from tests.bpf.fabric import ALLOW, DENY, Pod, any_key, port_key
from tests.bpf.talking import connected, listening

UDP = 17
ALLOWED, DENIED = 5001, 5002
# Both say: port 5001 yes, port 5002 no; but by other entries, so that a mixture would say something else.
BY_PORT = {port_key(Direction.INGRESS, UDP, ALLOWED): ALLOW}
BY_DENIAL = {
    any_key(Direction.INGRESS): ALLOW,
    port_key(Direction.INGRESS, UDP, DENIED): DENY,
    **{port_key(Direction.INGRESS, UDP, port, 4000 + port): DENY for port in range(200)},
}
BY_IDENTITY = {
    any_key(Direction.INGRESS, 1001): DENY,
    any_key(Direction.INGRESS): ALLOW,
}
ROUNDS = 150


class Flow:
    """Datagrams, numbered, from one pod to a port of another; each from a new source port."""

    def __init__(self, client: Pod, server: Pod, port: int) -> None:
        self._to = (str(server.address), port)
        self._client = client
        self._listener = server.namespace.socket(socket.SOCK_DGRAM)
        self._listener.bind(self._to)
        self._listener.setblocking(False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent = 0

    def _send(self) -> None:
        while not self._stop.wait(0.0005):
            with self._client.namespace.socket(socket.SOCK_DGRAM) as end:
                end.sendto(b"x", self._to)
            self.sent += 1

    def received(self) -> int:
        found = 0
        while True:
            try:
                self._listener.recv(10)
            except BlockingIOError:
                return found
            found += 1

    def __enter__(self) -> Flow:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._listener.close()


@pytest.fixture
def flows(client: Pod, server: Pod) -> Iterator[tuple[Flow, Flow]]:
    server.set_policy(BY_PORT)
    with Flow(client, server, ALLOWED) as allowed, Flow(client, server, DENIED) as denied:
        yield allowed, denied


def test_no_window_while_a_policy_is_replaced(server: Pod, flows: tuple[Flow, Flow]) -> None:
    allowed, denied = flows
    for _ in range(ROUNDS):
        server.set_policy(BY_DENIAL)
        server.set_policy(BY_PORT)
    wait_for(lambda: min(allowed.sent, denied.sent) > 100, "both flows ran")
    allowed.stop()
    denied.stop()
    assert denied.received() == 0
    assert allowed.received() == allowed.sent


def test_from_one_denial_to_another_nothing_slips_through(client: Pod, server: Pod) -> None:
    """By entries, one after the other, the allowance of all would stand alone for a moment."""
    server.set_policy({})
    with Flow(client, server, DENIED) as denied:
        for _ in range(ROUNDS):
            server.set_policy(BY_IDENTITY)
            server.set_policy({})
        wait_for(lambda: denied.sent > 100, "the flow ran")
        denied.stop()
        assert denied.received() == 0


def test_many_endpoints_are_replaced_together(client: Pod, server: Pod) -> None:
    policies = client.node.maps.policies
    before = {pod.id: policies.revision(pod.id) for pod in (client, server)}
    policies.replace({client.id: BY_DENIAL, server.id: BY_PORT})
    assert policies.read(client.id) == BY_DENIAL
    assert policies.read(server.id) == BY_PORT
    assert {pod.id: policies.revision(pod.id) for pod in (client, server)} == {
        endpoint: revision + 1 for endpoint, revision in before.items()
    }
    assert {client.id, server.id} <= policies.endpoints()


def test_a_policy_of_thousands_of_entries(client: Pod, server: Pod) -> None:
    large = {
        port_key(Direction.INGRESS, 6, port, identity): ALLOW
        for identity in range(2000, 2100)
        for port in range(8000, 8100)
    }
    large[port_key(Direction.INGRESS, 6, 80, client.identity)] = ALLOW
    server.set_policy(large)
    assert server.node.maps.policies.read(server.id) == large
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()


def test_a_table_of_connections_under_flood_fails_closed(client: Pod, server: Pod, far: Pod) -> None:
    """More connections than the table holds: live ones are judged again, denied ones stay denied."""
    conntrack = client.node.maps.conntrack
    with (
        connected(client.namespace, far, far.address) as connection,
        listening(server.namespace, server.address, 53, socket.SOCK_DGRAM) as listener,
    ):
        connection.echo()
        server.set_policy({})
        entry = tables.ConntrackEntry.unpack(bytes(tables.ConntrackEntry.size()))
        flood = {
            tables.FlowKey(
                local=client.address,
                peer=far.address,
                local_port=number & 0xFFFF,
                peer_port=number >> 16,
                protocol=UDP,
                endpoint=client.id,
            ): entry
            for number in range(1 << 16, (1 << 16) + 140_000)
        }
        conntrack.put_many(flood)
        with client.namespace.socket(socket.SOCK_DGRAM) as end:
            end.sendto(b"x", (str(server.address), 53))
        connection.echo()
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.recv(10)

"""Accelerated connections: made, looked at, and compared with plain TCP."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from datapath.codec import Address
from datapath.constants import ConfigFlag
from datapath.maps import RedirectConnection
from tests.bpf.counting import hit, wait_for
from tests.bpf.fabric import Pod
from tests.bpf.sandbox import Node
from tests.bpf.talking import Connection, connected


@contextlib.contextmanager
def redirect_config(node: Node, *, on: bool = True, budget: int | None = None) -> Iterator[None]:
    """The node's switch and budget (KiB) for the time of a block. Off: plain TCP, the oracle."""
    before = node.config()
    flags = before.flags | ConfigFlag.REDIRECT if on else before.flags & ~ConfigFlag.REDIRECT
    budget = before.redirect_budget if budget is None else budget
    node.maps.write_config(dataclasses.replace(before, flags=flags, redirect_budget=budget))
    try:
        yield
    finally:
        node.maps.write_config(before)


@contextlib.contextmanager
def pair(client: Pod, server: Pod, port: int = 80, address: Address | None = None) -> Iterator[Connection]:
    """A connection between two pods of one node, its sockets in the node's cgroup."""
    with (
        client.node.in_cgroup(),
        connected(client.namespace, server, address or server.address, port) as connection,
    ):
        yield connection


def find(node: Node, connection: Connection) -> RedirectConnection:
    """What the datapath knows of a connection, by the client's port."""
    port = connection.client.getsockname()[1]
    found = [item for item in node.maps.redirect.connections() if item.client_port == port]
    assert len(found) == 1, found
    return found[0]


def unread(node: Node, connection: Connection) -> int:
    """Unread bytes of what the client has sent."""
    return find(node, connection).from_client.unread


def tcp_packets(node: Node, connection: Connection) -> int:
    """Packets of a connection that tc has seen, at both veths."""
    port = connection.client.getsockname()[1]
    return sum(
        entry.tx_packets + entry.rx_packets
        for key, entry in node.maps.conntrack.items()
        if port in (key.local_port, key.peer_port)
    )


def wait_until_accelerated(node: Node, connection: Connection) -> RedirectConnection:
    """Both ends are enrolled; returns what is known."""
    wait_for(lambda: find(node, connection).accelerated, "the connection is accelerated")
    return find(node, connection)


def reason_of(node: Node, connection: Connection) -> str:
    """Why a connection is plain TCP; it works all the same."""
    connection.echo(b"as ever")
    found = find(node, connection)
    assert not found.accelerated
    assert found.reason
    hit.add(found.reason.label)
    return found.reason.label

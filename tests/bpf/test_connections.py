"""Real connections through the programs: they work, and end when policy says so."""

from __future__ import annotations

import errno
import select
import socket
import time

import pytest

from datapath.constants import Direction, Place
from datapath.nudge import nudge
from datapath.tables import AddressKey
from tests.bpf.conftest import Pods
from tests.bpf.counting import counted, wait_for
from tests.bpf.fabric import ALLOW, OPEN, Fabric, Pod, any_key, port_key
from tests.bpf.sandbox import Node
from tests.bpf.talking import connected, listening, receive

CLOSED = {any_key(Direction.EGRESS): ALLOW}
MEGABYTE = bytes(range(256)) * 4096


def test_pods_of_one_node_talk(client: Pod, server: Pod) -> None:
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        connection.echo(MEGABYTE[:100_000])


def test_pods_of_two_nodes_talk(client: Pod, far: Pod) -> None:
    with connected(client.namespace, far, far.address) as connection:
        connection.echo()
        connection.echo(MEGABYTE[:100_000])
    with connected(far.namespace, client, client.address) as connection:
        connection.echo()


def test_the_nodes_processes_reach_every_pod_and_are_seen_by_their_address(client: Pod, far: Pod) -> None:
    node = client.node
    with connected(node.namespace, client, client.address) as connection:
        connection.echo()
        assert connection.server.getpeername()[0] == str(node.address)
    with connected(node.namespace, far, far.address) as connection:
        connection.echo()
        assert connection.server.getpeername()[0] == str(node.router)


def test_pods_reach_processes_of_every_node(client: Pod, other: Node) -> None:
    for node in (client.node, other):
        with connected(client.namespace, node.namespace, node.address, 7001) as connection:
            connection.echo()
            assert connection.server.getpeername()[0] == str(client.address)


def test_outside_sees_the_nodes_address(client: Pod, fabric: Fabric) -> None:
    with connected(client.namespace, fabric.outside, fabric.OUTSIDE, 7002) as connection:
        connection.echo()
        assert connection.server.getpeername()[0] == str(client.node.address)


def test_the_overlay_is_no_business_of_the_kernels_connection_tracking(
    client: Pod, far: Pod, fabric: Fabric
) -> None:
    """It is there for the masquerade; what crosses nodes is spared it, at both of them."""

    def tracked(node: Node, *what: str) -> str:
        return node.sandbox.run(node.namespace, "conntrack", "-L", *what).stdout

    with connected(client.namespace, far, far.address) as connection:
        connection.echo()
    with connected(client.namespace, fabric.outside, fabric.OUTSIDE, 7004) as connection:
        connection.echo()
    assert "dport=7004" in tracked(client.node, "-p", "tcp"), "what is masqueraded is tracked"
    for pod in (client, far):
        assert f"dport={pod.node.config().overlay_port}" not in tracked(pod.node, "-p", "udp")


def test_datagrams_both_ways(client: Pod, far: Pod) -> None:
    with listening(far.namespace, far.address, 53, socket.SOCK_DGRAM) as server:
        asking = client.namespace.socket(socket.SOCK_DGRAM)
        asking.sendto(b"question", (str(far.address), 53))
        data, peer = server.recvfrom(100)
        server.sendto(data[::-1], peer)
        assert asking.recv(100) == b"noitseuq"
        asking.close()


def test_large_datagrams_in_fragments(client: Pod, server: Pod, far: Pod) -> None:
    for target in (server, far):
        with listening(target.namespace, target.address, 53, socket.SOCK_DGRAM) as listener:
            asking = client.namespace.socket(socket.SOCK_DGRAM)
            asking.sendto(MEGABYTE[:20_000], (str(target.address), 53))
            assert listener.recv(30_000) == MEGABYTE[:20_000]
            asking.close()


def test_a_denied_connection_times_out(client: Pod, server: Pod) -> None:
    server.set_policy(CLOSED)
    with listening(server.namespace, server.address, 80), client.namespace.socket(socket.SOCK_STREAM) as end:
        end.settimeout(0.3)
        with (
            counted(client.node, "POLICY_DEFAULT", Place.POD_EGRESS, exactly=False),
            pytest.raises(TimeoutError),
        ):
            end.connect((str(server.address), 80))


def expect_reset(end: socket.socket, within: float = 1.0) -> None:
    """The end learns of the reset within the time, by itself."""
    ready, _, _ = select.select([end], [], [], within)
    assert ready, "no reset came"
    with pytest.raises(ConnectionResetError) as caught:
        end.recv(1)
    assert caught.value.errno == errno.ECONNRESET


def connection_pair(pods: Pods, where: str, node: Node, other: Node) -> tuple[Pod, Pod]:
    first = pods(node, 2001)
    return first, pods(node if where == "same node" else other, 2002)


@pytest.mark.parametrize("where", ["same node", "two nodes"])
@pytest.mark.parametrize("whose", ["client's", "server's"])
@pytest.mark.parametrize("speaks", ["client", "server"])
def test_both_ends_of_a_revoked_connection_get_a_reset(
    where: str, whose: str, speaks: str, pods: Pods, node: Node, other: Node
) -> None:
    client, server = connection_pair(pods, where, node, other)
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        if whose == "client's":
            client.set_policy({any_key(Direction.INGRESS): ALLOW})
        else:
            server.set_policy({any_key(Direction.EGRESS): ALLOW})
        speaker = connection.client if speaks == "client" else connection.server
        revoked_at = client.node if whose == "client's" else server.node
        arrives = where == "two nodes" and (whose == "client's") != (speaks == "client")
        place = Place.OVERLAY if arrives else Place.POD_EGRESS
        with counted(revoked_at, "RESET_SENT", place, exactly=False):
            speaker.sendall(b"not any more")
            expect_reset(connection.client)
            expect_reset(connection.server)


@pytest.mark.parametrize("where", ["same node", "two nodes"])
@pytest.mark.parametrize("whose", ["client's", "server's"])
def test_an_idle_connection_is_reset_too(where: str, whose: str, pods: Pods, node: Node, other: Node) -> None:
    client, server = connection_pair(pods, where, node, other)
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        pod = client if whose == "client's" else server
        with counted(pod.node, "NUDGED", Place.POD_INGRESS, 2):
            pod.set_policy({})
            assert nudge_stale(pod) == 1
        expect_reset(connection.client)
        expect_reset(connection.server)


def nudge_stale(pod: Pod) -> int:
    """What the agent does after a change of policy; how many connections it nudged."""
    maps = pod.node.maps
    stale = maps.conntrack.stale({pod.id: maps.policies.revision(pod.id)})
    endpoint = maps.endpoints.get(AddressKey(address=pod.address))
    assert endpoint
    with pod.node.namespace.entered():
        nudge([(key, endpoint) for key in stale])
    return len(stale)


def test_an_idle_connection_that_stays_allowed_is_left_alone(client: Pod, server: Pod) -> None:
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        server.set_policy({port_key(Direction.INGRESS, 6, 80): ALLOW})
        assert nudge_stale(server) == 1
        wait_for(lambda: nudge_stale(server) == 0, "the connection was judged again")
        connection.echo()


def test_a_connection_from_outside_is_reset_at_both_ends(pods: Pods, node: Node, fabric: Fabric) -> None:
    client = pods(node, 2001)
    with connected(client.namespace, fabric.outside, fabric.OUTSIDE, 7003) as connection:
        connection.echo()
        client.set_policy({})
        connection.client.sendall(b"x")
        expect_reset(connection.client)
        expect_reset(connection.server)


def test_the_nodes_connection_to_its_pod_survives_any_policy(client: Pod) -> None:
    with connected(client.node.namespace, client, client.address) as connection:
        connection.echo()
        client.set_policy({})
        connection.echo()


def test_streaming_survives_a_change_that_allows_it(client: Pod, far: Pod) -> None:
    with connected(client.namespace, far, far.address) as connection:
        for _ in range(20):
            far.set_policy({port_key(Direction.INGRESS, 6, 80, client.identity): ALLOW})
            client.set_policy(OPEN)
            connection.client.sendall(MEGABYTE[:50_000])
            assert receive(connection.server, 50_000) == MEGABYTE[:50_000]


def test_established_connections_outlive_eviction_of_their_entries(client: Pod, far: Pod) -> None:
    with connected(client.namespace, far, far.address) as connection:
        connection.echo()
        client.node.maps.conntrack.purge(client.id)
        far.node.maps.conntrack.purge(far.id)
        connection.echo()


def test_counters_of_a_connection(client: Pod, server: Pod) -> None:
    with connected(client.namespace, server, server.address) as connection:
        connection.echo(b"x" * 1000)
        mine = [entry for key, entry in client.node.maps.conntrack.live() if key.endpoint == client.id]
        assert len(mine) == 1
        assert mine[0].tx_bytes > 1000 < mine[0].rx_bytes
        assert mine[0].peer_identity == server.identity


def test_closing_is_noticed(client: Pod, server: Pod) -> None:
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
    now = time.monotonic_ns()
    limit = client.node.config().close_timeout * 10**9
    wait_for(
        lambda: all(
            entry.expires - now <= limit + 10**9
            for key, entry in client.node.maps.conntrack.items()
            if key.endpoint in (client.id, server.id)
        ),
        "entries of a closed connection expire soon",
    )

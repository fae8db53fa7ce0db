"""Services at the socket: applications use the service's address and never learn of the backend's."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from datapath import tables
from datapath.constants import PROXY_UID, NamespaceFlag, Place, Scope, ServiceFlag
from tests.bpf.conftest import Pods
from tests.bpf.counting import counted
from tests.bpf.fabric import Pod
from tests.bpf.namespaces import Namespace, acting_as
from tests.bpf.sandbox import Node
from tests.bpf.services import ANY_NODE, service
from tests.bpf.talking import Echo, ask, listening, refused_error

VIP = ipaddress.IPv4Address("10.96.0.10")


@pytest.fixture(autouse=True)
def in_cgroup(node: Node) -> Iterator[None]:
    """All sockets of these tests are where the first node's socket programs are attached."""
    with node.in_cgroup():
        yield


def test_a_connection_to_a_service_reaches_a_backend(client: Pod, server: Pod) -> None:
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
        counted(client.node, "SERVICE_TRANSLATED", Place.SOCKET),
    ):
        assert ask(client.namespace, VIP, 80) == ("server", str(client.address))


def test_getpeername_shows_the_service(client: Pod, server: Pod) -> None:
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(VIP), 80))
        with counted(client.node, "REPLY_TRANSLATED", Place.SOCKET):
            assert end.getpeername() == (str(VIP), 80)


def test_v4_mapped_sockets(client: Pod, server: Pod) -> None:
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
        client.namespace.socket(socket.SOCK_STREAM, socket.AF_INET6) as end,
    ):
        end.connect((f"::ffff:{VIP}", 80))
        assert end.makefile().readline() == f"server {client.address}\n"
        assert end.getpeername()[:2] == (f"::ffff:{VIP}", 80)


def test_the_nodes_own_processes_use_services(server: Pod) -> None:
    with (
        service(server.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        assert ask(server.node.namespace, VIP, 80) == ("server", str(server.node.address))


def test_connections_spread_over_backends(client: Pod, pods: Pods, node: Node, other: Node) -> None:
    servers = {f"s{i}": pods(where, 1500 + i) for i, where in enumerate((node, other, node))}
    with service(client.node, VIP, 80, [(pod.address, 8080) for pod in servers.values()]):
        echoes = [Echo(pod.namespace, pod.address, 8080, name) for name, pod in servers.items()]
        seen = Counter(ask(client.namespace, VIP, 80)[0] for _ in range(90))
        for echo in echoes:
            echo.__exit__()
    assert set(seen) == set(servers)
    assert min(seen.values()) >= 10


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_no_backend_is_refused_at_once(family: socket.AddressFamily, client: Pod) -> None:
    address = str(VIP) if family == socket.AF_INET else f"::ffff:{VIP}"
    with service(client.node, VIP, 80, []), client.namespace.socket(socket.SOCK_STREAM, family) as end:
        started = time.monotonic()
        with counted(client.node, "SERVICE_NO_BACKEND", Place.SOCKET), pytest.raises(OSError) as caught:
            end.connect((address, 80))
    assert caught.value.errno == errno.ECONNREFUSED
    assert time.monotonic() - started < 0.5


def test_no_backend_refuses_datagrams_too(client: Pod) -> None:
    with (
        service(client.node, VIP, 53, [], protocol=17),
        client.namespace.socket(socket.SOCK_DGRAM) as end,
        pytest.raises(ConnectionRefusedError),
    ):
        end.sendto(b"x", (str(VIP), 53))


def test_a_port_that_no_service_has_is_refused(client: Pod) -> None:
    with counted(client.node, "SERVICE_UNKNOWN", Place.SOCKET):
        assert refused_error(client.namespace, VIP, 81).errno == errno.ECONNREFUSED


def test_a_pod_reaches_itself_through_its_service(server: Pod) -> None:
    with (
        service(server.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "self"),
    ):
        assert ask(server.namespace, VIP, 80)[0] == "self"


@pytest.mark.parametrize("connect_first", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_datagrams(connect_first: bool, mapped: bool, client: Pod, server: Pod) -> None:
    family = socket.AF_INET6 if mapped else socket.AF_INET
    address = (f"::ffff:{VIP}" if mapped else str(VIP), 53)
    with (
        service(client.node, VIP, 53, [(server.address, 5353)], protocol=17),
        listening(server.namespace, server.address, 5353, socket.SOCK_DGRAM) as listener,
        client.namespace.socket(socket.SOCK_DGRAM, family) as end,
    ):
        if connect_first:
            end.connect(address)
            end.send(b"question")
        else:
            end.sendto(b"question", address)
        data, peer = listener.recvfrom(100)
        assert (data, peer[0]) == (b"question", str(client.address))
        listener.sendto(b"answer", peer)
        data, source = end.recvfrom(100)
        assert (data, source[:2]) == (b"answer", address)


def _backend_of(end: socket.socket, node: Node) -> str:
    """The one backend that all datagrams of a socket went to."""
    cookie = int.from_bytes(end.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
    (peer,) = {str(key.peer) for key in node.maps.origins.read() if key.cookie == cookie}
    return peer


@pytest.mark.parametrize("others", [0, 1, 3])
def test_the_datagrams_of_one_socket_go_to_one_backend_and_sockets_spread(
    others: int, client: Pod, pods: Pods, node: Node
) -> None:
    """Also those of a client that makes sockets in a pattern: one for the service, then some others."""
    servers = [pods(node, 1500 + i) for i in range(4)]
    seen: Counter[str] = Counter()
    with service(node, VIP, 53, [(pod.address, 5353) for pod in servers], protocol=17):
        for _ in range(40):
            with client.namespace.socket(socket.SOCK_DGRAM) as end:
                for _ in range(5):
                    end.sendto(b"x", (str(VIP), 53))
                seen[_backend_of(end, node)] += 1
            for _ in range(others):
                with client.namespace.socket(socket.SOCK_DGRAM) as other:
                    other.connect((str(VIP), 53))
    assert set(seen) == {str(pod.address) for pod in servers}


def test_affinity_keeps_a_client_with_its_backend(client: Pod, pods: Pods, node: Node, other: Node) -> None:
    servers = {f"s{i}": pods(other, 1500 + i) for i in range(4)}
    backends = [(pod.address, 8080) for pod in servers.values()]
    echoes = [Echo(pod.namespace, pod.address, 8080, name) for name, pod in servers.items()]
    options = {"flags": ServiceFlag.AFFINITY, "affinity_seconds": 60, "affinity": 77}
    with service(node, VIP, 80, backends, **options):  # type: ignore[arg-type]
        first = ask(client.namespace, VIP, 80)[0]
        assert {ask(client.namespace, VIP, 80)[0] for _ in range(20)} == {first}
    left = [backend for backend in reversed(backends) if backend[0] != servers[first].address]
    kept = [*left, (servers[first].address, 8080)]
    with service(node, VIP, 80, kept, **options):  # type: ignore[arg-type]
        assert {ask(client.namespace, VIP, 80)[0] for _ in range(20)} == {first}
    with service(node, VIP, 80, left, **options):  # type: ignore[arg-type]
        second = ask(client.namespace, VIP, 80)[0]
        assert second != first
        assert {ask(client.namespace, VIP, 80)[0] for _ in range(20)} == {second}
    for echo in echoes:
        echo.__exit__()


def test_affinity_ends_with_its_time(client: Pod, pods: Pods, node: Node) -> None:
    servers = [pods(node, 1500 + i) for i in range(8)]
    echoes = [Echo(pod.namespace, pod.address, 8080, f"s{i}") for i, pod in enumerate(servers)]
    with service(
        node, VIP, 80, [(p.address, 8080) for p in servers], flags=ServiceFlag.AFFINITY, affinity_seconds=0
    ):
        assert len({ask(client.namespace, VIP, 80)[0] for _ in range(40)}) > 1
    for echo in echoes:
        echo.__exit__()


def test_node_ports_at_every_nodes_address(client: Pod, server: Pod, other: Node) -> None:
    with (
        service(client.node, ANY_NODE, 30080, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        for address in (client.node.address, other.address, client.node.router):
            assert ask(client.namespace, address, 30080)[0] == "server"
            assert ask(client.node.namespace, address, 30080)[0] == "server"
        assert ask(client.node.namespace, "127.0.0.1", 30080)[0] == "server"
        assert refused_error(client.namespace, "127.0.0.1", 30080).errno == errno.ECONNREFUSED


def test_scopes_are_apart(client: Pod, server: Pod) -> None:
    address = ipaddress.IPv4Address("203.0.113.7")
    with service(client.node, address, 80, [(server.address, 8080)], scopes=[Scope.EXTERNAL]):
        key = tables.ServiceKey(address=address, port=80, protocol=6, scope=Scope.EXTERNAL)
        assert client.node.maps.services.get(key)
        with client.namespace.socket(socket.SOCK_DGRAM) as end:
            end.connect((str(address), 80))
            assert end.getpeername() == (str(address), 80)


def test_a_pod_that_opted_out_keeps_the_services_address(client: Pod, server: Pod) -> None:
    key = tables.NamespaceKey(cookie=client.namespace.cookie())
    client.node.maps.namespaces.put(
        key, tables.Namespace(endpoint=client.id, flags=NamespaceFlag.NO_SOCKET_SERVICES)
    )
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
        counted(client.node, "SERVICE_TRANSLATED", Place.SOCKET, 0),
    ):
        assert ask(client.namespace, VIP, 80)[0] == "server"
    client.node.maps.namespaces.delete(key)


def test_the_proxy_in_such_a_pod_is_translated_all_the_same(client: Pod, server: Pod) -> None:
    key = tables.NamespaceKey(cookie=client.namespace.cookie())
    client.node.maps.namespaces.put(
        key, tables.Namespace(endpoint=client.id, flags=NamespaceFlag.NO_SOCKET_SERVICES)
    )
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
        counted(client.node, "SERVICE_TRANSLATED", Place.SOCKET, 1),
        acting_as(PROXY_UID),
    ):
        assert ask(client.namespace, VIP, 80)[0] == "server"
    client.node.maps.namespaces.delete(key)


def connect_time(namespace: Namespace, count: int) -> int:
    """Fastest TCP connect to the service, in nanoseconds: what else runs on the machine does not count."""
    times = []
    for _ in range(count):
        with namespace.socket(socket.SOCK_STREAM) as end:
            started = time.perf_counter_ns()
            end.connect((str(VIP), 80))
            times.append(time.perf_counter_ns() - started)
    return min(times)


def test_a_service_is_found_among_ten_thousand(
    client: Pod, server: Pod, record_property: Callable[[str, object], None]
) -> None:
    """What it costs beside ten Services is recorded: a figure, and no verdict."""
    maps = client.node.maps
    numbers = range(1_000_000, 1_010_000)
    entries = {
        tables.ServiceKey(address=VIP + 1 + i, port=80, protocol=6): tables.Service(id=number, count=1)
        for i, number in enumerate(numbers)
    }
    slots = {
        tables.BackendKey(service=number, slot=0): tables.Backend(address=server.address, port=80, id=number)
        for number in numbers
    }
    few, many = [], []
    with (
        service(client.node, VIP, 80, [(server.address, 8080)]),
        Echo(server.namespace, server.address, 8080, "server"),
    ):
        for _ in range(9):
            few.append(connect_time(client.namespace, 200))
            maps.services.put_many(entries)
            maps.backends.put_many(slots)
            assert ask(client.namespace, VIP, 80)[0] == "server"
            many.append(connect_time(client.namespace, 200))
            maps.services.delete_many(entries)
            maps.backends.delete_many(slots)
    record_property("fastest connect, 10,000 Services to 10", round(min(many) / min(few), 3))

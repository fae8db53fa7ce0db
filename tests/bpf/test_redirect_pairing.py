"""Which two sockets belong together: exact, or not at all (hazards 10, 14 to 17, 19, 22, 36)."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.constants import NamespaceFlag, Place
from datapath.programs import PROGRAMS
from tests.bpf.conftest import Pods
from tests.bpf.counting import counted, wait_for
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find, pair, reason_of
from tests.bpf.sandbox import SERVICE_RANGE, Node
from tests.bpf.services import service
from tests.bpf.talking import Connection, listening, receive
from tests.sizes import SIZES

IPPROTO_MPTCP = 262
SO_ZEROCOPY = 60
SO_RCVLOWAT = 18
SOCK_PAIR = next(item for item in PROGRAMS if item.name == "sock_pair")
LINGER_NOW = struct.pack("ii", 1, 0)


@pytest.fixture
def sidecars(pods: Pods, node: Node) -> tuple[Pod, Pod]:
    """Two pods whose inner connections are accelerated."""
    made = pods(node, 1001), pods(node, 1002)
    for pod in made:
        pod.flag(NamespaceFlag.SIDECAR)
    return made


def test_hazard_10_a_peer_that_is_gone_is_no_refusal(client: Pod, server: Pod) -> None:
    """Plain TCP takes the bytes and learns later; so does this, where a verdict of SK_DROP gives EACCES."""
    with pair(client, server) as connection:
        connection.echo()
        connection.server.close()
        with counted(client.node, "PEER_GONE", Place.SOCKET):
            assert connection.client.send(b"into the void") == 13
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                connection.client.send(b"x")


def nat(pod: Pod, *rules: str) -> None:
    """Translate in the pod's own namespace, as a sidecar's rules do."""
    chains = "".join(
        f"chain {hook} {{ type nat hook {hook} priority -100; {rule}; }}\n"
        for hook, rule in (rule.split(":", 1) for rule in rules)
    )
    pod.node.sandbox.run(pod.namespace, "nft", f"table ip sidecar {{ {chains} }}")


def test_hazard_14_nat_between_the_ends_misleads_nobody(sidecars: tuple[Pod, Pod]) -> None:
    """The application's connection is redirected to a proxy in its pod, the proxy's to one in the other."""
    one, two = sidecars
    node = one.node
    nat(one, "output: tcp dport 8080 redirect to :15001")
    nat(two, "prerouting: tcp dport 8081 redirect to :15006")
    with (
        node.in_cgroup(),
        listening(one.namespace, "0.0.0.0", 15001) as outbound,
        listening(two.namespace, "0.0.0.0", 15006) as inbound,
        one.namespace.socket(socket.SOCK_STREAM) as application,
        one.namespace.socket(socket.SOCK_STREAM) as proxy,
    ):
        application.connect((str(two.address), 8080))
        accepted, _ = outbound.accept()
        proxy.connect((str(two.address), 8081))
        far, _ = inbound.accept()
        with accepted, far:
            for ends, port in (((application, accepted), 8080), ((proxy, far), 8081)):
                connection = Connection(*ends)
                connection.echo(b"through %d" % port)
                found = find(node, connection)
                assert found.accelerated
                assert found.from_client.messages == found.from_server.messages == 1
                assert (found.server, found.server_port) == (two.address, port)


def test_hazard_14_a_service_address_is_accelerated(client: Pod, server: Pod) -> None:
    address = SERVICE_RANGE.network_address + 77
    node = client.node
    with (
        service(node, address, 80, [(server.address, 8080)]),
        node.in_cgroup(),
        listening(server.namespace, server.address, 8080) as listener,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(address), 80))
        accepted, _ = listener.accept()
        with accepted:
            connection = Connection(end, accepted)
            connection.echo()
            found = find(node, connection)
            assert found.accelerated
            assert (found.server, found.server_port) == (server.address, 8080)


def test_hazard_15_equal_loopback_tuples_in_two_pods(sidecars: tuple[Pod, Pod]) -> None:
    """The same addresses and ports at both ends in both pods: each hears its own."""
    node = sidecars[0].node
    ends: list[Connection] = []
    with node.in_cgroup():
        listeners = []
        for pod in sidecars:
            listener = pod.namespace.socket(socket.SOCK_STREAM)
            listener.bind(("127.0.0.1", 7777))
            listener.listen()
            listeners.append(listener)
        clients = []
        for pod in sidecars:
            end = pod.namespace.socket(socket.SOCK_STREAM)
            end.bind(("127.0.0.1", 40000))
            clients.append(end)
        for end in clients:
            end.connect(("127.0.0.1", 7777))
        for end, listener in zip(clients, listeners, strict=True):
            ends.append(Connection(end, listener.accept()[0]))
    for number, connection in enumerate(ends):
        connection.client.sendall(b"of pod %d" % number)
    for number, connection in enumerate(ends):
        assert connection.server.recv(100) == b"of pod %d" % number
    known = [item for item in node.maps.redirect.connections() if item.client_port == 40000]
    assert [item.accelerated for item in known] == [True, True]
    assert {item.client_endpoint for item in known} == {pod.id for pod in sidecars}
    for connection in ends:
        connection.client.close()
        connection.server.close()
    for listener in listeners:
        listener.close()


def test_hazard_15_inside_a_pod_without_a_sidecar_nothing_is_accelerated(client: Pod) -> None:
    with pair(client, client, address=client.address) as connection:
        assert reason_of(client.node, connection) == "PEER_NOT_LOCAL"


def test_hazard_16_ports_are_read_in_their_own_byte_orders(client: Pod, server: Pod) -> None:
    with pair(client, server, port=0x1234) as connection:
        found = find(client.node, connection)
        assert (str(found.client), found.client_port) == connection.client.getsockname()
        assert (str(found.server), found.server_port) == connection.client.getpeername()
        assert found.server_port == 0x1234


def test_hazard_17_a_tuple_that_is_used_again(client: Pod, server: Pod) -> None:
    """Reset and connected again from the same port: every connection is paired anew, no byte strays."""
    node = client.node
    with node.in_cgroup(), listening(server.namespace, server.address, 80) as listener:
        for number in range(SIZES.redirect_reuses):
            with client.namespace.socket(socket.SOCK_STREAM) as end:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                end.bind((str(client.address), 41000))
                end.connect((str(server.address), 80))
                accepted, _ = listener.accept()
                with accepted:
                    end.sendall(b"%8d" % number)
                    assert receive(accepted, 8) == b"%8d" % number
                    assert find(node, Connection(end, accepted)).from_client.messages == 1
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOW)
    wait_for(
        lambda: all(item.client_port != 41000 for item in node.maps.redirect.streams.read().values()),
        "nothing is left of closed connections",
    )


def test_hazard_19_connect_send_close_at_full_speed(
    client: Pod, server: Pod, record_property: Callable[[str, object], None]
) -> None:
    """No byte is lost, misdelivered or reordered, though the first leaves with the handshake's last."""
    node = client.node
    got: list[bytes] = []
    with client.namespace.entered():
        # A closed connection keeps its port for a minute: a quick machine would use up the usual 28,000.
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535", encoding="ascii")
    with node.in_cgroup(), listening(server.namespace, server.address, 80) as listener:

        def serve() -> None:
            for _ in range(SIZES.redirect_connects):
                accepted, _ = listener.accept()
                with accepted:
                    data = b""
                    while more := accepted.recv(100):
                        data += more
                    got.append(data)

        thread = threading.Thread(target=serve)
        thread.start()
        before = node.maps.metrics.get("ACCELERATED", Place.SOCKET)
        began = time.monotonic()
        for number in range(SIZES.redirect_connects):
            with client.namespace.socket(socket.SOCK_STREAM) as end:
                end.connect((str(server.address), 80))
                end.send(b"%d:" % number)
                end.send(b"%d" % number)
        thread.join(60)
        rate = SIZES.redirect_connects / (time.monotonic() - began)
        accelerated = node.maps.metrics.get("ACCELERATED", Place.SOCKET) - before
    assert sorted(got) == sorted(b"%d:%d" % (number, number) for number in range(SIZES.redirect_connects))
    record_property("connects a second", round(rate))
    record_property("accelerated share", accelerated / SIZES.redirect_connects)
    assert accelerated  # how many is a matter of where the kernel runs the handshake's last packet


def test_hazard_22_ipv4_by_ipv6_sockets(client: Pod, server: Pod) -> None:
    """Many runtimes use them: a v4-mapped client, a dual-stack listener, either, both."""
    node = client.node
    families = (socket.AF_INET, socket.AF_INET6)
    for of_client in families:
        for of_server in families:
            with (
                node.in_cgroup(),
                server.namespace.socket(socket.SOCK_STREAM, of_server) as listener,
                client.namespace.socket(socket.SOCK_STREAM, of_client) as end,
            ):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("::" if of_server == socket.AF_INET6 else "0.0.0.0", 8080))
                listener.listen()
                prefix = "::ffff:" if of_client == socket.AF_INET6 else ""
                end.connect((f"{prefix}{server.address}", 8080))
                accepted, _ = listener.accept()
                with accepted:
                    connection = Connection(end, accepted)
                    connection.echo()
                    found = find(node, connection)
                    assert found.accelerated and found.client == client.address


def test_hazard_22_native_ipv6_inside_a_pod(sidecars: tuple[Pod, Pod]) -> None:
    pod = sidecars[0]
    with (
        pod.node.in_cgroup(),
        pod.namespace.socket(socket.SOCK_STREAM, socket.AF_INET6) as listener,
        pod.namespace.socket(socket.SOCK_STREAM, socket.AF_INET6) as end,
    ):
        listener.bind(("::1", 8080))
        listener.listen()
        end.connect(("::1", 8080))
        accepted, _ = listener.accept()
        with accepted:
            connection = Connection(end, accepted)
            connection.echo()
            assert find(pod.node, connection).accelerated


def disconnect(end: socket.socket) -> None:
    """connect() to AF_UNSPEC: the socket is as new."""
    unspecified = ctypes.create_string_buffer(16)
    assert ctypes.CDLL(None).connect(end.fileno(), unspecified, 16) == 0


def test_hazard_36_a_socket_that_is_connected_again(client: Pod, server: Pod) -> None:
    node = client.node
    with (
        node.in_cgroup(),
        listening(server.namespace, server.address, 80) as first,
        listening(server.namespace, server.address, 81) as second,
        client.namespace.socket(socket.SOCK_STREAM) as end,
    ):
        end.connect((str(server.address), 80))
        old, _ = first.accept()
        end.sendall(b"to the first")
        assert old.recv(100) == b"to the first"
        disconnect(end)
        end.connect((str(server.address), 81))
        new, _ = second.accept()
        with old, new:
            Connection(end, new).echo(b"to the second")
            old.settimeout(0.1)
            with pytest.raises((TimeoutError, ConnectionResetError)):
                assert old.recv(100) != b"to the second"
                raise TimeoutError

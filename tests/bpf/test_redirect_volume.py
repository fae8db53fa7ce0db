"""A gigabyte at full size: as requests and replies it moves no packet, as one stream it arrives whole.

What goes one way only may be more than its reader takes at once: then TCP carries part of it and makes
the sender wait, and what is redirected and unread never exceeds the budget.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import threading
from collections.abc import Callable

from datapath.redirect_tables import Stream
from tests.bpf.counting import wait_for
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find, pair, tcp_packets, unread
from tests.bpf.talking import Connection, receive
from tests.sizes import SIZES

MEGABYTE = 1 << 20
MESSAGE = 64 * 1024
RequestAndReply = tuple[int, int]
#: Bytes of requests and of their replies, all within the budget.
EXCHANGES: tuple[RequestAndReply, ...] = ((200, 65_536), (65_536, 200), (1400, 300_000), (900_000, 900_000))
Told = Callable[[str, object], None]


def cable_packets(*pods: Pod) -> int:
    """Packets that the pods' veths have moved, both ways, as the devices count them."""
    total = 0
    for pod in pods:
        with pod.node.namespace.netlink() as netlink:
            counts = netlink.get_links(pod.index)[0].get_attr("IFLA_STATS64")
        total += counts["rx_packets"] + counts["tx_packets"]
    return total


def without_ipv6(*pods: Pod) -> None:
    """A new cable has a word or two of IPv6 to say; here none."""
    for pod in pods:
        pod.namespace.write_sysctl("ipv6/conf/eth0/disable_ipv6", "1")
        pod.node.namespace.write_sysctl(f"ipv6/conf/{pod.device}/disable_ipv6", "1")


def test_hazard_24_requests_and_replies_within_the_budget_move_no_packet(
    client: Pod, server: Pod, record_property: Told
) -> None:
    """Not one on either veth, handshake and close apart, whatever the size of requests and replies."""
    node = client.node
    budget = node.config().redirect_budget * 1024
    assert all(max(sizes) <= budget for sizes in EXCHANGES)
    data = os.urandom(MEGABYTE)
    without_ipv6(client, server)
    with pair(client, server) as connection:
        connection.echo()
        on_cables, by_tc = cable_packets(client, server), tcp_packets(node, connection)
        moved = 0
        for request, reply in itertools.cycle(EXCHANGES):
            connection.client.sendall(data[:request])
            assert receive(connection.server, request) == data[:request]
            connection.server.sendall(data[-reply:])
            assert receive(connection.client, reply) == data[-reply:]
            moved += request + reply
            if moved >= SIZES.redirect_volume:
                break
        packets = cable_packets(client, server) - on_cables
        found = find(node, connection)
        record_property("bytes as requests and replies", moved)
        record_property("packets on both veths", packets)
        assert packets == 0
        assert tcp_packets(node, connection) == by_tc
        assert found.from_client.bytes + found.from_server.bytes == moved + 2 * len(b"ping")
        assert found.from_client.tcp_bytes == found.from_server.tcp_bytes == 0


class Sampler(threading.Thread):
    """Looks at the client's stream, from the map, while it runs.

    most_redirected: bytes unread while all of them had been redirected, at most. most: with those that TCP
    carried.
    """

    def __init__(self, pod: Pod, connection: Connection) -> None:
        super().__init__(daemon=True)
        port = connection.client.getsockname()[1]
        self._streams = pod.node.maps.redirect.streams
        found = {key: one for key, one in self._streams.read().items() if one.client_port == port}
        (self._key,) = (key for key, one in found.items() if one.side == 0)
        self._over = threading.Event()
        self.samples = self.most = self.most_redirected = 0

    def run(self) -> None:
        while not self._over.wait(0.0005):
            stream = self._streams.get(self._key)
            if stream:
                self._add(stream)

    def _add(self, stream: Stream) -> None:
        left = max(0, stream.redirected + stream.tcp_bytes - stream.received)
        self.samples += 1
        self.most = max(self.most, left)
        if stream.received >= stream.mark:  # nothing left to TCP is unread
            self.most_redirected = max(self.most_redirected, left)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def test_hazard_01_a_one_way_stream_arrives_whole_within_its_budget(
    client: Pod, server: Pod, record_property: Told
) -> None:
    """Sent as fast as it is taken: equal by SHA-256, unread bytes within the budget and one message."""
    node = client.node
    budget = node.config().redirect_budget * 1024
    data = os.urandom(MEGABYTE)
    sent, got = hashlib.sha256(), hashlib.sha256()
    received = 0

    def read() -> None:
        nonlocal received
        while more := connection.server.recv(256 * 1024):
            got.update(more)
            received += len(more)

    with pair(client, server) as connection:
        connection.echo()
        connection.client.settimeout(30)
        connection.server.settimeout(30)
        reader = threading.Thread(target=read)
        with Sampler(client, connection) as seen:
            reader.start()
            for start in itertools.islice(
                itertools.cycle(range(0, MEGABYTE, MESSAGE)), SIZES.redirect_volume // MESSAGE
            ):
                part = data[start : start + MESSAGE]
                sent.update(part)
                connection.client.sendall(part)
            wait_for(lambda: unread(node, connection) == 0, "all is read", 60)
        found = find(node, connection).from_client
        connection.client.shutdown(socket.SHUT_WR)
        reader.join(30)
    record_property("one-way bytes", received)
    record_property("redirected share", round(found.bytes / (found.bytes + found.tcp_bytes), 4))
    record_property("unread at most, redirected alone", f"{seen.most_redirected} of {budget}")
    record_property("unread at most, with what TCP held", f"{seen.most} ({seen.samples} samples)")
    assert (received, got.hexdigest()) == (SIZES.redirect_volume, sent.hexdigest())
    assert seen.samples > 10
    assert 0 < seen.most_redirected <= budget + MESSAGE
    assert found.bytes > 0

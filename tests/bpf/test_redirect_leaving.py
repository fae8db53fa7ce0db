"""Senders that are better off with TCP get it back while they send, and nobody loses a byte by it."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading

import pytest

from datapath import reasons
from datapath.constants import DepartureStep, Obstacle, Place, Side
from tests.bpf.counting import counted, events, hit, wait_for
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find, pair, tcp_packets
from tests.bpf.streaming import LIMITS, Looking, has_left, key_of, leave, streaming, why_plain
from tests.bpf.talking import Connection, listening, receive
from tests.bpf.test_connections import expect_reset
from tests.bpf.test_redirect_flow import LINGER_NOW, blocked_read
from tests.bpf.test_redirect_pairing import disconnect
from tests.bpf.test_redirect_policy import CLOSED, nudge_stale
from tests.sizes import SIZES

SMALL, LARGE = 64, 16384


def ends(connection: Connection, side: Side) -> tuple[socket.socket, socket.socket]:
    """The end of a side, and the other one."""
    if side == Side.CLIENT:
        return connection.client, connection.server
    return connection.server, connection.client


def stays_redirected(client: Pod, connection: Connection, looking: Looking) -> None:
    """Through twice as many looks as make a stream, at each of which enough messages are there for one."""
    node = client.node
    for _ in range(2 * LIMITS.looks):
        enough = find(node, connection).from_client.messages + LIMITS.small_per_second
        wait_for(
            lambda: find(node, connection).from_client.messages > enough,  # noqa: B023
            "enough messages for one look",
        )
        looking.look()
        assert why_plain(node, connection) is None


@pytest.mark.parametrize("side", list(Side), ids=lambda side: side.name.lower())
@pytest.mark.parametrize(("size", "reason"), [(SMALL, "SMALL_MESSAGES"), (LARGE, "SLOW_READER")])
def test_a_stream_that_is_better_off_with_tcp_gets_it_back_and_arrives_whole(
    size: int, reason: str, side: Side, client: Pod, server: Pod
) -> None:
    """Under way, by the agent's own choice; what its reader answers then arrives as well."""
    node = client.node
    for _ in range(SIZES.redirect_departures):
        with pair(client, server) as connection:
            connection.echo()
            sender, reader = ends(connection, side)
            looking = Looking(client, server)
            with streaming(sender, reader, size) as stream:
                stream.slow = reason == "SLOW_READER"
                looking.look_until(lambda: has_left(node, connection), f"the {side.name} leaves")
                found = find(node, connection)
                assert found.reason and found.reason.label == reason and not found.accelerated
                read, packets = stream.received, tcp_packets(node, connection)
                wait_for(lambda: stream.received > read + 10 * size, "the stream goes on")  # noqa: B023
                wait_for(lambda: tcp_packets(node, connection) > packets, "by TCP")  # noqa: B023
                sent, received = stream.stop()
            assert received == sent
            connection.echo(os.urandom(100_000 if size == LARGE else 100))
            assert looking.told[-1]["message"] == "sender has left redirect"
            assert looking.told[-1]["reason"] == reasons.by_label()[reason].name
            assert not node.maps.departures.entries.read()
    hit.add(reason)


def test_a_stream_of_small_messages_on_one_cpu_stays_redirected(client: Pod, server: Pod) -> None:
    """There it would be the slower for having left: its reader stays, and makes a message of each segment."""
    with pair(client, server) as connection:
        connection.echo()
        looking = Looking(client, server)
        with streaming(connection.client, connection.server, SMALL, one_cpu=True) as stream:
            stays_redirected(client, connection, looking)
            sent, received = stream.stop()
        assert received == sent


def test_small_requests_and_replies_stay_redirected(client: Pod, server: Pod) -> None:
    """They are as many and as small, but not one-way: by that alone they differ."""
    node = client.node
    stop = threading.Event()

    def ask() -> None:
        os.sched_setaffinity(threading.get_native_id(), {min(cpus)})
        while not stop.is_set():
            connection.client.sendall(b"x" * SMALL)
            assert receive(connection.client, SMALL)
        connection.client.shutdown(socket.SHUT_WR)

    def answer() -> None:
        os.sched_setaffinity(threading.get_native_id(), {max(cpus)})
        while question := receive(connection.server, SMALL):
            connection.server.sendall(question)

    with pair(client, server) as connection:
        cpus = os.sched_getaffinity(0)
        threads = [threading.Thread(target=body) for body in (ask, answer)]
        for thread in threads:
            thread.start()
        looking = Looking(client, server)
        stays_redirected(client, connection, looking)
        alike = Looking(client, server, dataclasses.replace(LIMITS, one_way=0))
        alike.look_until(lambda: why_plain(node, connection) is not None, "as a stream they would leave")
        stop.set()
        for thread in threads:
            thread.join(10)


def test_hazard_12_who_waits_to_read_keeps_its_place_and_reads_what_comes(client: Pod, server: Pod) -> None:
    """Taken out, its recv() would say EAGAIN. So such a sender stays, and leaves when nobody waits."""
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        thread, seen = blocked_read(connection.client)
        looking = Looking(client, server, dataclasses.replace(LIMITS, tries=5, patience=2, rest=1.0))
        with streaming(connection.client, connection.server, SMALL) as stream:
            looking.look_until(lambda: len(looking.told) > 1, "it was tried, more than once")
            assert {told["obstacle"] for told in looking.told} == {"in-use"}
            assert why_plain(node, connection) is None
            connection.server.sendall(b"answer")
            thread.join(5)
            assert seen == [b"answer"]
            patient = Looking(client, server)
            patient.look_until(lambda: has_left(node, connection), "it leaves when nobody waits")
            sent, received = stream.stop()
        assert received == sent
        connection.server.sendall(b"late")
        assert receive(connection.client, 4) == b"late"


def test_what_is_unread_keeps_a_sender_and_is_read_in_order(client: Pod, server: Pod) -> None:
    """Redirected bytes first, then those that came by TCP meanwhile, then it leaves."""
    node = client.node
    departures = node.maps.departures
    with pair(client, server) as connection:
        connection.echo()
        key = key_of(node, connection)
        connection.server.sendall(b"A" * 1000)
        departures.ask(key, reasons.by_label()["SMALL_MESSAGES"])
        for _ in range(3):
            departures.step(client.namespace.entered)
        found = departures.entries.get(key)
        assert found and (found.step, found.obstacle) == (DepartureStep.PARTED, Obstacle.UNREAD)
        connection.server.sendall(b"B" * 1000)
        assert receive(connection.client, 1500) == b"A" * 1000 + b"B" * 500
        departures.step(client.namespace.entered)
        found = departures.entries.get(key)
        assert found and found.step == DepartureStep.PARTED
        assert receive(connection.client, 500) == b"B" * 500
        departures.step(client.namespace.entered)
        found = departures.entries.get(key)
        assert found and found.step == DepartureStep.LEFT
        departures.entries.delete(key)
        connection.echo()


def test_what_is_given_up_half_way_is_redirected_again(client: Pod, server: Pod) -> None:
    node = client.node
    departures = node.maps.departures
    with pair(client, server) as connection:
        connection.echo()
        key = key_of(node, connection)
        departures.ask(key, reasons.by_label()["SLOW_READER"])
        departures.step(client.namespace.entered)
        with counted(node, "SLOW_READER", Place.SOCKET, 2):
            connection.echo()
        assert why_plain(node, connection) == "SLOW_READER"
        departures.give_up(key)
        departures.step(client.namespace.entered)
        assert not departures.entries.read()
        assert why_plain(node, connection) is None
        with counted(node, "REDIRECTED", Place.SOCKET, 2):
            connection.echo()


def test_an_upgrade_in_between_changes_nothing(client: Pod, server: Pod) -> None:
    """The steps are in the kernel: new programs, and an agent that was started again, go on with them."""
    node = client.node
    with pair(client, server) as connection, pair(client, server, 81) as other:
        connection.echo()
        other.echo()
        key = key_of(node, connection)
        leave(client, key_of(node, other), "SMALL_MESSAGES")
        node.maps.departures.ask(key, reasons.by_label()["SMALL_MESSAGES"])
        node.maps.departures.step(client.namespace.entered)
        node.loader("up", "--force")
        looking = Looking(client, server)
        looking.look()
        assert [told["message"] for told in looking.told] == ["sender has left redirect"]
        for one in (connection, other):
            assert has_left(node, one)
            one.echo(b"x" * 10_000)


@pytest.mark.parametrize("side", list(Side), ids=lambda side: side.name.lower())
@pytest.mark.parametrize("speaks", [True, False], ids=["speaking", "idle"])
def test_hazard_23_policy_still_ends_it_at_both_ends(
    speaks: bool, side: Side, client: Pod, server: Pod
) -> None:
    """After a phase of redirect that connection tracking saw nothing of."""
    node = client.node
    with pair(client, server) as connection:
        connection.echo(b"x" * 100_000)
        leave(client if side == Side.CLIENT else server, key_of(node, connection, side), "SMALL_MESSAGES")
        connection.echo(b"y" * 100_000)
        server.set_policy(CLOSED)
        if speaks:
            connection.server.send(b"must not arrive")
        else:
            assert nudge_stale(server)
        expect_reset(connection.client)
        expect_reset(connection.server)


@pytest.mark.parametrize("way", ["half-close", "reset", "close"])
@pytest.mark.parametrize("by", ["left", "stayed"])
def test_its_end_is_that_of_a_connection_by_tcp(by: str, way: str, client: Pod, server: Pod) -> None:
    node = client.node
    with events(node) as found, pair(client, server) as connection:
        connection.echo(b"x" * 1000)
        leave(client, key_of(node, connection), "SMALL_MESSAGES")
        mine, other = ends(connection, Side.CLIENT if by == "left" else Side.SERVER)
        if way == "half-close":
            mine.sendall(b"last")
            mine.shutdown(socket.SHUT_WR)
            assert receive(other, 100) == b"last"
            other.sendall(b"y" * 100_000)
            assert receive(mine, 100_000) == b"y" * 100_000
            other.close()
            assert mine.recv(1) == b""
        elif way == "reset":
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOW)
            mine.close()
            with pytest.raises(ConnectionResetError):
                other.recv(1)
        else:
            mine.sendall(b"last")
            mine.close()
            assert receive(other, 100) == b"last"
    ended = [event for event in found if reasons.by_number()[event.reason].label == "ACCELERATED_CLOSED"]
    assert [(event.messages, event.bytes) for event in ended] == [(2, 2000)]
    left = [event for event in found if reasons.by_number()[event.reason].label == "SMALL_MESSAGES"]
    assert [(event.place, event.bytes) for event in left] == [(Place.SOCKET, 2000)]


def test_all_that_a_killed_sender_has_sent_arrives(client: Pod, server: Pod) -> None:
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        looking = Looking(client, server)
        with streaming(connection.client, connection.server, SMALL) as stream:
            looking.look_until(lambda: has_left(node, connection), "it leaves")
            connection.client.close()
            stream.process.kill()
            wait_for(lambda: stream.ended, "the end of the stream")
        assert stream.received and not stream.received % SMALL


def test_a_socket_that_left_and_is_connected_anew_is_accelerated(client: Pod, server: Pod) -> None:
    node = client.node
    with pair(client, server) as connection:
        connection.echo()
        leave(client, key_of(node, connection), "SMALL_MESSAGES")
        with node.in_cgroup(), listening(server.namespace, server.address, 81) as second:
            disconnect(connection.client)
            connection.client.connect((str(server.address), 81))
            accepted, _ = second.accept()
            with accepted, counted(node, "REDIRECTED", Place.SOCKET, 2):
                again = Connection(connection.client, accepted)
                again.echo()
                assert why_plain(node, again) is None

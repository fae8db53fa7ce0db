"""Flow events: what is reported, and that reporting is bounded."""

from __future__ import annotations

import dataclasses
import os
import select
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP, UDP

from datapath import reasons, tables
from datapath.constants import Direction, Place, Verdict
from tests.bpf.counting import events, hit, wait_for
from tests.bpf.fabric import ALLOW, Pod, any_key
from tests.bpf.packets import DROP, REDIRECT, frame_from, sent_by
from tests.bpf.talking import connected

SYN = TCP(sport=40000, dport=80, flags="S", seq=100)


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Stay on one CPU: each has a budget of events of its own."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def test_a_denial_shows_who_and_by_which_rule(client: Pod, server: Pod) -> None:
    rule = tables.PolicyEntry(verdict=Verdict.DENY, rule=4711, rule_set=3)
    client.set_policy({any_key(Direction.EGRESS): rule})
    with events(client.node) as seen:
        assert sent_by(client, frame_from(client, server.address, SYN)).action == DROP
    assert len(seen) == 1
    event = seen[0]
    assert (event.local, event.local_port) == (client.address, 40000)
    assert (event.peer, event.peer_port) == (server.address, 80)
    assert (event.endpoint, event.peer_identity) == (client.id, server.identity)
    assert (event.rule, event.rule_set) == (4711, 3)
    assert (event.direction, event.protocol, event.tcp_flags) == (Direction.EGRESS, 6, 2)
    assert (event.place, event.ifindex) == (Place.POD_EGRESS, client.index)
    assert reasons.name_of(event.reason) == "policy-denied"


def test_a_connection_is_reported_once_at_each_end_when_it_opens_and_closes(client: Pod, server: Pod) -> None:
    rule = tables.PolicyEntry(verdict=Verdict.ALLOW, rule=12)
    server.set_policy({any_key(Direction.INGRESS): rule})
    with events(client.node) as seen, connected(client.namespace, server, server.address) as connection:
        for _ in range(50):
            connection.echo()
        connection.client.close()
        assert connection.server.recv(1) == b""
        connection.server.close()
    told = [(reasons.name_of(e.reason), e.endpoint, e.direction, e.rule) for e in seen]
    opened = [("opened", client.id, Direction.EGRESS, 0), ("opened", server.id, Direction.INGRESS, 12)]
    assert told[:2] == opened
    assert {entry[:2] for entry in told[2:]} == {("closed", client.id), ("closed", server.id)}
    hit.update(("OPENED", "CLOSED"))


def test_packets_that_merely_pass_are_not_reported(client: Pod, server: Pod) -> None:
    frame = frame_from(client, server.address, UDP(sport=4000, dport=53))
    assert sent_by(client, frame).action == REDIRECT
    with events(client.node) as seen:
        for _ in range(100):
            assert sent_by(client, frame).action == REDIRECT
    assert seen == []


def test_events_are_bounded_and_what_is_lost_is_counted(client: Pod, server: Pod) -> None:
    node = client.node
    config = node.config()
    client.set_policy({any_key(Direction.INGRESS): ALLOW})
    node.maps.write_config(dataclasses.replace(config, events_per_second=20))
    lost = node.maps.metrics.events_lost()
    try:
        with events(node) as seen:
            for port in range(1000):
                frame = frame_from(client, server.address, UDP(sport=port + 1000, dport=53))
                assert sent_by(client, frame).action == DROP
    finally:
        node.maps.write_config(config)
    assert 0 < len(seen) < 500
    assert node.maps.metrics.events_lost() - lost + len(seen) >= 1000


@pytest.mark.usefixtures("one_cpu")
def test_the_reader_is_not_woken_for_each_event(client: Pod, server: Pod) -> None:
    node = client.node
    config = node.config()
    client.set_policy({any_key(Direction.INGRESS): ALLOW})

    def deny(port: int) -> None:
        sent_by(client, frame_from(client, server.address, UDP(sport=port, dport=53)))

    def budget_is_there() -> bool:
        with events(node) as seen:
            deny(4999)
        return bool(seen)

    wait_for(budget_is_there, "the budget of events is filled again")
    poll = select.epoll()
    poll.register(node.maps.events_fd, select.EPOLLIN | select.EPOLLET)
    poll.poll(0)
    waiting = 40
    node.maps.write_config(dataclasses.replace(config, events_wakeup=waiting * tables.FlowEvent.size()))
    try:
        with events(node) as seen:
            woken = 0
            for port in range(60):
                deny(5000 + port)
                woken += len(poll.poll(0))
    finally:
        node.maps.write_config(config)
        poll.close()
    assert len(seen) == 60
    assert 1 <= woken <= 60 - waiting // 2

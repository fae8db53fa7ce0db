"""What the agent says of accelerated connections, who opted out, and why others are plain TCP."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import metrics
from agent.endpoints import namespace_flags
from agent.flows import FlowReader
from agent.model.objects import INJECTED_MARK, REDIRECT_ANNOTATION
from agent.node import command
from agent.node.answers import AnswerError, Answers
from agent.node.server import Flows
from agent.outbox import Outbox
from agent.planes.base import Change, Kind
from agent.redirect import explain, selftest
from agent.redirect.explain import End, Staying, Switches
from agent.redirect.view import RedirectView
from datapath import reasons, tables
from datapath.constants import ConfigFlag, ConntrackFlag, NamespaceFlag, Obstacle, Place, Side
from datapath.constants import Direction as Towards
from datapath.maps.metrics import Count
from datapath.maps.redirect import Direction, RedirectConnection
from datapath.redirect_tables import SocketKey
from tests.fake_kernel import FakeKernel
from tests.unit.test_agent_command import Watches
from tests.unit.test_agent_engine import Bench, labelled, pod

ON = Switches(True)
A, B = ipaddress.IPv4Address("10.244.0.11"), ipaddress.IPv4Address("10.244.0.12")


def reason(label: str) -> reasons.Reason:
    return reasons.by_label()[label]


def connection(**more: Any) -> RedirectConnection:
    given: dict[str, Any] = {
        "client": A,
        "client_port": 40000,
        "server": B,
        "server_port": 80,
        "client_endpoint": 1,
        "server_endpoint": 2,
        "sides": (Side.CLIENT, Side.SERVER),
        "accelerated": True,
        "reason": None,
        "opened": 5,
        "from_client": Direction(messages=3, bytes=300, latency_samples=2, latency_total=50_000),
        "from_server": Direction(messages=3, bytes=900, tcp_bytes=10),
    }
    return RedirectConnection(**{**given, **more})


PLAIN = connection(client_port=40001, accelerated=False, reason=reason("OPTED_OUT"), opened=6)


class Maps:
    """The datapath's maps, as far as redirect is concerned."""

    def __init__(self) -> None:
        self.connections = [connection(), PLAIN]
        self.staying: dict[SocketKey, Staying] = {}
        self.tracked: list[tuple[tables.FlowKey, tables.ConntrackEntry]] = []
        self.redirect = SimpleNamespace(connections=lambda: list(self.connections))
        self.conntrack = SimpleNamespace(live=lambda: list(self.tracked))
        self.flags = ConfigFlag.REDIRECT
        self.metrics = SimpleNamespace(
            read=lambda: [
                Count(reason("REDIRECTED"), Place.SOCKET, 6, 1200),
                Count(reason("ACCELERATED"), Place.SOCKET, 1, 0),
                Count(reason("OPTED_OUT"), Place.SOCKET, 2, 0),
                Count(reason("TO_POD"), Place.POD_EGRESS, 9, 900),
            ]
        )

    def read_config(self) -> Any:
        return SimpleNamespace(flags=self.flags)


@pytest.fixture
def maps() -> Maps:
    return Maps()


@pytest.fixture
def view(maps: Maps) -> RedirectView:
    return RedirectView(
        maps,  # type: ignore[arg-type]
        lambda: frozenset({3306}),
        lambda: maps.staying,
        lambda *_, **__: None,
    )


# Who opts out


@pytest.mark.parametrize(
    ("annotations", "flags"),
    [
        ({}, NamespaceFlag.NONE),
        ({REDIRECT_ANNOTATION: "enabled"}, NamespaceFlag.NONE),
        ({REDIRECT_ANNOTATION: "disabled"}, NamespaceFlag.NO_REDIRECT),
        ({REDIRECT_ANNOTATION: "no, thanks"}, NamespaceFlag.NO_REDIRECT),
        ({INJECTED_MARK: "{}"}, NamespaceFlag.NO_SOCKET_SERVICES | NamespaceFlag.SIDECAR),
    ],
)
def test_annotations_say_how_a_pods_sockets_are_treated(
    annotations: dict[str, str], flags: NamespaceFlag
) -> None:
    assert namespace_flags(dataclasses.replace(pod("a"), annotations=annotations)) == flags


def test_a_pod_that_opts_out_while_it_runs_is_written(tmp_path: Path) -> None:
    kernel = FakeKernel()
    bench = Bench(tmp_path, kernel)
    bench.complete(Change(Kind.POD, "blue/a", pod("a")))
    bench.put(labelled(1, pod("a"), 300))
    out = dataclasses.replace(pod("a"), annotations={REDIRECT_ANNOTATION: "disabled"})
    bench.tell(Change(Kind.POD, "blue/a", out))
    (entry,) = kernel.namespaces.content.values()
    assert entry.flags == NamespaceFlag.NO_REDIRECT
    bench.engine.stop()


def test_a_new_identity_has_accelerated_connections_judged_again_after_it_is_written(tmp_path: Path) -> None:
    """No packet shows the programs the new identity: the revision must move, and not too early."""
    kernel = FakeKernel()
    bench = Bench(tmp_path, kernel)
    bench.complete(Change(Kind.POD, "blue/a", pod("a")))
    bench.put(labelled(1, pod("a"), 300))
    seen: list[tuple[str, int]] = []
    touch = kernel.policies.touch

    def noted(endpoint: int) -> int:
        (entry,) = kernel.endpoints.content.values()
        seen.append(("touched", entry.identity))
        return touch(endpoint)

    kernel.policies.touch = noted  # type: ignore[method-assign]
    bench.put(labelled(1, pod("a"), 300))
    assert seen == []
    bench.put(labelled(1, pod("a"), 301))
    assert seen == [("touched", 301)]
    assert {1} in bench.effects.moved
    bench.engine.stop()


# Explaining


SOURCE, TARGET = End("blue/a", str(A), 1), End("blue/b", str(B), 2)
SIDECAR = dataclasses.replace(SOURCE, flags=NamespaceFlag.SIDECAR)


@pytest.mark.parametrize(
    ("source", "target", "port", "switches", "expected"),
    [
        (SOURCE, TARGET, 80, ON, None),
        (SOURCE, TARGET, 80, Switches(False), "redirect-off"),
        (SOURCE, TARGET, 3306, Switches(True, frozenset({3306})), "opted-out"),
        (dataclasses.replace(SOURCE, flags=NamespaceFlag.NO_REDIRECT), TARGET, 80, ON, "opted-out"),
        (SOURCE, dataclasses.replace(TARGET, flags=NamespaceFlag.NO_REDIRECT), 80, ON, "opted-out"),
        (SOURCE, End("blue/far", "10.244.1.9"), 80, ON, "peer-not-local"),
        (SOURCE, SOURCE, 80, ON, "peer-not-local"),
        (SIDECAR, SIDECAR, 80, ON, None),
    ],
)
def test_what_a_new_connection_would_be(
    source: End, target: End, port: int, switches: Switches, expected: str | None
) -> None:
    assert explain.forecast(source, target, port, switches) == expected


def test_every_reason_for_plain_tcp_has_words(view: RedirectView) -> None:
    for row in reasons.table():
        if row.meaning.startswith(("plain TCP", "by TCP")):
            assert explain.meaning(row.name)


def test_connections_are_told_with_their_reasons_and_counts(view: RedirectView) -> None:
    answer = view.explain(SOURCE, TARGET, 80, {1: "blue/a", 2: "blue/b"})
    fast, plain = answer["connections"]
    assert (fast["accelerated"], fast["client_pod"], fast["server_pod"]) == (True, "blue/a", "blue/b")
    assert fast["from_client"]["messages"] == 3
    assert fast["from_client"]["latency_microseconds"] == 25.0
    assert (plain["accelerated"], plain["reason"]) == (False, "opted-out")
    assert plain["why"] == "the pod or the port asks for it"
    assert answer["next"] == {"accelerated": True, "reason": "", "why": ""}
    assert view.explain(SOURCE, TARGET, 81, {})["connections"] == []
    assert view.explain(TARGET, SOURCE, 0, {})["connections"] == []


def test_a_sender_that_should_leave_and_cannot_is_told_with_what_keeps_it(
    maps: Maps, answers: Answers
) -> None:
    maps.connections = [connection(cookie=7, generation=1), PLAIN]
    assert [one["note"] for one in answers.answer("explain", {})["connections"]] == ["", ""]
    sender = SocketKey(cookie=7, generation=1, side=Side.SERVER)
    maps.staying = {sender: Staying("small-messages", "in-use")}
    answer = answers.answer("explain", {})
    kept, other = answer["connections"]
    assert (kept["from_server"]["better_by_tcp"], kept["from_server"]["obstacle"]) == (
        "small-messages",
        "in-use",
    )
    assert (kept["from_client"]["better_by_tcp"], other["note"]) == ("", "")
    said = f"{A}:40000: its server would be better off with TCP (small-messages) but stays: a program waits"
    assert said in command.show_explain(answer)


@pytest.mark.parametrize("obstacle", [one for one in Obstacle if one is not Obstacle.NONE])
def test_every_obstacle_has_words(obstacle: Obstacle) -> None:
    assert explain.OBSTACLES[obstacle.name.lower().replace("_", "-")]


def tracked(client_port: int, flags: ConntrackFlag = ConntrackFlag.SEEN_REPLY, **more: Any) -> Any:
    key = tables.FlowKey(local=A, peer=B, local_port=client_port, peer_port=80, protocol=6, endpoint=1)
    numbers: dict[str, Any] = dict.fromkeys(
        ("expires", "created", "revision", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes"), 1
    )
    rest: dict[str, Any] = dict.fromkeys(("peer_identity", "rule", "rule_set", "proxy_port", "verdict"), 0)
    entry = tables.ConntrackEntry(
        **numbers, **rest, flags=flags, direction=more.get("direction", Towards.EGRESS)
    )
    return key, entry


def test_connections_that_the_programs_never_saw_are_older_than_them(maps: Maps, view: RedirectView) -> None:
    maps.connections = [connection()]
    maps.tracked = [
        tracked(40000),  # the accelerated one
        tracked(40002),
        tracked(40003, ConntrackFlag.LOCAL_FIN),
        tracked(40004, ConntrackFlag.TRANSLATED),
        tracked(40005, direction=Towards.INGRESS),
        tracked(40006, ConntrackFlag.NONE),  # nobody has answered
    ]
    answer = view.explain(SOURCE, None, 0, {1: "blue/a"})
    found = {one["client"].rpartition(":")[2]: one["reason"] for one in answer["connections"]}
    assert found == {"40000": "", "40002": "before-agent"}
    assert answer["next"] is None


@pytest.fixture
def answers(tmp_path: Path, view: RedirectView) -> Any:
    bench = Bench(tmp_path, FakeKernel())
    bench.complete(Change(Kind.POD, "blue/a", pod("a")), Change(Kind.POD, "blue/b", pod("b")))
    bench.put(labelled(1, pod("a"), 300))
    bench.put(labelled(2, pod("b"), 301))
    outbox = Outbox(1, lambda *_, **__: None)
    yield Answers(bench.engine, bench.ipam, Watches(), outbox, list, view, "test")  # type: ignore[arg-type]
    bench.engine.stop()


def test_explain_takes_pods_and_addresses(answers: Answers) -> None:
    for source, target in (("blue/a", "blue/b"), (str(A), str(B)), ("blue/a", ""), ("", "")):
        answer = answers.answer("explain", {"source": source, "target": target, "port": 80})
        assert len(answer["connections"]) == 2
    text = command.show_explain(answers.answer("explain", {"source": "blue/a", "target": "blue/b"}))
    assert "opted-out: the pod or the port asks for it" in text
    assert "a new connection would be accelerated" in text


@pytest.mark.parametrize("source", ["blue/nobody", "192.0.2.1"])
def test_a_source_that_is_not_of_this_node_is_refused(answers: Answers, source: str) -> None:
    with pytest.raises(AnswerError, match=source):
        answers.answer("explain", {"source": source, "target": "blue/b"})


def test_status_says_whether_redirect_works(answers: Answers, view: RedirectView) -> None:
    view.tested = selftest.Outcome(False, "the programs did not see the connection")
    status = answers.answer("status", {})
    assert status["redirect"]["self_test"]["works"] is False
    assert (status["redirect"]["connections"], status["redirect"]["accelerated"]) == (2, 1)
    assert "DOES NOT WORK: the programs did not see the connection" in command.show_status(status)


# The self-test's verdict, metrics, flows


@pytest.mark.parametrize(
    ("found", "works", "word"),
    [
        ([], False, "control group"),
        ([PLAIN], False, "opted-out"),
        ([connection(from_server=Direction(tcp_messages=2))], False, "went by TCP"),
        ([connection(from_client=Direction(messages=2, unread=5))], False, "not counted as read"),
        ([connection(from_server=Direction(messages=2))], True, "socket to socket"),
    ],
)
def test_the_self_test_judges_what_it_sees(found: list[RedirectConnection], works: bool, word: str) -> None:
    own = [dataclasses.replace(one, client_endpoint=selftest.ENDPOINT) for one in found]
    outcome = selftest.judge(own)
    assert (outcome.works, word in outcome.detail) == (works, True), outcome.detail


def test_a_switched_off_node_is_not_tried(maps: Maps) -> None:
    said: list[tuple[str, str]] = []
    maps.flags = ConfigFlag.NONE
    view = RedirectView(maps, frozenset, dict, lambda level, event, **_: said.append((level, event)))  # type: ignore[arg-type]
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    view.run(stop)
    assert view.tested.works is None
    assert said == [("info", "socket redirect tried")]


def test_metrics_tell_what_is_accelerated_and_what_is_not(view: RedirectView) -> None:
    room = metrics.Metrics()
    room.watch_redirect(view.counts)
    lines = room.text().decode().splitlines()
    for line in (
        'underpass_redirect_connections{accelerated="true",reason=""} 1.0',
        'underpass_redirect_connections{accelerated="false",reason="opted-out"} 1.0',
        'underpass_redirect_plain_total{reason="opted-out"} 2.0',
        "underpass_redirect_accelerated_total 1.0",
        "underpass_redirect_messages_total 6.0",
        "underpass_redirect_bytes_total 1200.0",
        "underpass_redirect_latency_mean_seconds 2.5e-05",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("label", "marked"), [("OPENED", False), ("ACCELERATED", True), ("ACCELERATED_CLOSED", True)]
)
def test_flows_are_marked_and_carry_their_totals(label: str, marked: bool) -> None:
    event = tables.FlowEvent(
        time=1, local=A, peer=B, local_port=40000, peer_port=80, peer_identity=0, rule=0, rule_set=0,
        ifindex=0, length=0, endpoint=1, reason=reason(label).number, direction=1, protocol=6, tcp_flags=0,
        place=Place.SOCKET, messages=7, bytes=700, latency=25_040,
    )  # fmt: skip
    reader = FlowReader.__new__(FlowReader)
    reader._offset = 0.0
    reader._endpoint_name = lambda _: "blue/a"
    reader._rule_name = str
    flow = reader.describe(event)
    assert (flow["accelerated"], flow["messages"], flow["bytes"]) == (marked, 7, 700)
    assert "7 messages, 700 bytes from socket to socket, 25.0 us to read" in command.show_flow(flow)
    json.dumps(flow)


def test_an_event_of_another_releases_programs_is_not_misread() -> None:
    """They go on writing until the loader has replaced them; another size is another layout."""
    reader = FlowReader.__new__(FlowReader)
    reader.foreign = 0
    reader._flows = Flows()
    seen = reader._flows.watch()
    assert seen
    reader._take(b"\0" * (tables.FlowEvent.size() - 8))
    assert reader.foreign == 1
    assert seen.empty()

"""The node command asks the agent and prints what it answers, for people and for programs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model.objects import EndpointSlice, Name, Protocol, Service, ServicePort, SliceEndpoint
from agent.node import command
from agent.node.answers import Answers
from agent.node.server import Flows, NodeServer
from agent.outbox import Outbox
from agent.planes.base import Change, Kind
from agent.settings import SettingsError, load
from tests.fake_kernel import FakeKernel
from tests.unit.test_agent_engine import Bench, labelled, network_policy, pod


class Watches:
    """A plane whose watches are all well."""

    reachable = True
    watches: dict[str, Any] = {}  # noqa: RUF012


class Redirected:
    """Socket redirect that works and has no connection."""

    def summary(self) -> dict[str, Any]:
        tested = {"works": True, "detail": "tried"}
        return {"enabled": True, "plain_ports": [], "self_test": tested, "connections": 0, "accelerated": 0}


@pytest.fixture
def flows() -> Flows:
    return Flows()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, FakeKernel())
    made.complete(Change(Kind.POD, "blue/a", pod("a", app="a")))
    made.put(labelled(1, pod("a", app="a"), 300))
    yield made
    made.engine.stop()


@pytest.fixture
def agent(tmp_path: Path, bench: Bench, flows: Flows, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    maps = [{"name": "ipcache", "type": "lpm_trie", "entries": 3, "capacity": 10}]
    answers = Answers(
        bench.engine,
        bench.ipam,
        Watches(),  # type: ignore[arg-type]
        Outbox(1, lambda *_, **__: None),
        lambda: maps,
        Redirected(),  # type: ignore[arg-type]
        "test",
    )
    path = tmp_path / "agent.sock"
    server = NodeServer(path, answers.answer, flows, lambda *_, **__: None)
    server.start()
    monkeypatch.setenv("UNDERPASS_SOCKET", str(path))
    yield bench
    server.stop()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = command.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_status_says_what_is_there(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "10.244.1.0/24" in out
    _, out, _ = run(capsys, "status", "-o", "json")
    answer = json.loads(out)
    assert answer["ready"] is True
    assert answer["tables"]["endpoints"] == 1


def test_endpoints_show_whether_they_are_isolated(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    agent.tell(network_policy("p", podSelector={}))
    _, out, _ = run(capsys, "endpoints", "-o", "json")
    (endpoint,) = json.loads(out)
    assert (endpoint["pod"], endpoint["ingress"], endpoint["egress"]) == ("blue/a", "enforced", "open")
    assert endpoint["policies"] == ["NetworkPolicy:blue/p"]
    _, out, _ = run(capsys, "endpoints")
    assert out.splitlines()[0].split() == [
        "ID",
        "POD",
        "ADDRESS",
        "IDENTITY",
        "INGRESS",
        "EGRESS",
        "INTERFACE",
    ]


def test_services_show_their_backends(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    web = Name("blue", "web")
    service = Service(web, "ClusterIP", ("10.96.0.9",), (ServicePort("", Protocol.TCP, 80),))
    one = SliceEndpoint(("10.244.0.11",), True, True, False, "node-1")
    backing = EndpointSlice(Name("blue", "web-1"), web, (("", Protocol.TCP, 8080),), (one,))
    agent.tell(Change(Kind.SERVICE, "blue/web", service), Change(Kind.SLICE, "blue/web-1", backing))
    _, out, _ = run(capsys, "services", "-o", "json")
    (found,) = json.loads(out)
    assert (found["address"], found["backends"]) == ("10.96.0.9", ["10.244.0.11:8080"])


def test_identities_and_maps_are_tables(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "identities")
    assert "reserved:remote-node" in out
    assert "k8s:app=a" in out
    _, out, _ = run(capsys, "maps")
    assert "ipcache" in out


@pytest.mark.parametrize(
    ("source", "target", "port", "status"),
    [
        ("host", "blue/a", "80", 0),
        ("world", "blue/a", "80", 4),
        ("192.0.2.5", "10.244.0.11", "443", 0),
        ("192.0.2.5", "10.244.0.11", "80", 4),
        ("blue/a", "world", "80", 0),
    ],
)
def test_trace_tells_the_verdict_and_its_rule(
    agent: Bench, capsys: pytest.CaptureFixture[str], source: str, target: str, port: str, status: int
) -> None:
    rule = {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}
    agent.tell(network_policy("p", podSelector={}, ingress=[rule]))
    found, out, _ = run(capsys, "policy", "trace", source, target, "--port", port)
    assert found == status
    if port == "443":
        assert "NetworkPolicy:blue/p spec.ingress[0]" in out


def test_policies_that_are_not_valid_say_why(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    agent.tell(network_policy("p", podSelector={}, ingress=[{"from": [{}]}]))
    _, out, _ = run(capsys, "policy", "get")
    assert "spec.ingress[0].from[0]" in out
    _, out, _ = run(capsys, "policy", "get", "nothing", "-o", "json")
    assert json.loads(out) == []


def test_an_unknown_end_is_refused(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "policy", "trace", "nobody/here", "world")
    assert (status, out) == (1, "")
    assert "nobody/here" in err


def test_without_an_agent_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERPASS_SOCKET", str(tmp_path / "nobody"))
    status, _, err = run(capsys, "status")
    assert status == 3
    assert "does not answer" in err


FLOW = {
    "time": 0,
    "reason": "policy-denied",
    "dropped": True,
    "endpoint": "blue/a",
    "local": "10.244.0.11:80",
    "peer": "10.244.1.9:4",
    "peer_identity": 7,
    "direction": "ingress",
    "protocol": "TCP",
    "rule": "",
}


@contextlib.contextmanager
def fed(flows: Flows, *some: dict[str, Any]) -> Iterator[None]:
    """These flows happen as soon as somebody watches."""

    def feed() -> None:
        while not flows.watched:
            threading.Event().wait(0.005)
        for flow in some:
            flows.publish(flow)

    thread = threading.Thread(target=feed)
    thread.start()
    yield
    thread.join()


def test_monitor_prints_flows_and_nobody_watches_afterwards(
    agent: Bench, flows: Flows, capsys: pytest.CaptureFixture[str]
) -> None:
    with fed(flows, FLOW, FLOW, FLOW):
        status, out, _ = run(capsys, "monitor", "--count", "3")
    assert status == 0
    assert out.count("policy-denied") == 3


def test_monitor_shows_what_is_asked_for(
    agent: Bench, flows: Flows, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = {**FLOW, "reason": "opened", "dropped": False}
    with fed(flows, passed, {**FLOW, "endpoint": "blue/b"}, FLOW):
        _, out, _ = run(capsys, "monitor", "--count", "1", "--dropped", "--pod", "blue/a", "-o", "json")
    assert json.loads(out) == FLOW


def test_monitor_ends_in_time_when_nothing_happens(agent: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "monitor", "--seconds", "0.1") == (0, "", "")


def test_monitor_ends_when_its_reader_does(agent: Bench, flows: Flows, tmp_path: Path) -> None:
    """As at the end of an ssh connection: a silent monitor must not stay on the node."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.node.command", "monitor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_watcher_that_does_not_read_loses_flows_and_holds_up_nobody(flows: Flows) -> None:
    watcher = flows.watch()
    assert watcher is not None
    for _ in range(watcher.maxsize + 5):
        flows.publish({})
    assert flows.lost == 5
    flows.leave(watcher)
    assert not flows.watched


def test_a_question_that_is_none_is_refused(agent: Bench, tmp_path: Path) -> None:
    with pytest.raises(command.RefusedError, match="unknown command"):
        list(command.lines(str(tmp_path / "agent.sock"), "fly", {}, 5.0))


# The configuration file


def test_every_fault_of_the_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"node": "", "pods_range": "10.0.0.1/8", "speed": 3, "metrics_port": 70000}))
    with pytest.raises(SettingsError) as caught:
        load(path)
    for part in ("node:", "node_address: is missing", "pods_range:", "speed: is not known", "metrics_port:"):
        assert part in str(caught.value)


def test_a_configuration_has_defaults_for_what_is_the_same_on_every_node(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    given = {
        "node": "n",
        "node_address": "172.30.0.2",
        "pods_range": "10.244.0.0/16",
        "services_range": "10.96.0.0/16",
        "kubeconfig": "/etc/k",
    }
    path.write_text(json.dumps(given))
    found = load(path)
    assert found.run == Path("/run/underpass")
    assert found.conflist.name == "10-underpass.conflist"
    assert found.identity_wait_seconds == 600

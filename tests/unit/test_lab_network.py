"""What the agents of several nodes say becomes one answer, and what one does not say is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab import network, ssh
from lab.cli import app as command
from lab.errors import ExitCode, LabError
from lab.labfile import parse
from lab.network import Answers
from lab.render import Rendered, RenderedNode, render
from lab.run import Completed

FILE = "apiVersion: underpass.dev/v1\nkind: Lab\nid: joined\n"
WEB = {
    "owner": "default/web:80/TCP",
    "address": "10.96.0.9",
    "port": 80,
    "protocol": "TCP",
    "scope": "cluster",
    "affinity_seconds": 0,
    "backends": ["10.244.0.2:8080"],
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rendered:
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    parsed, _ = parse(FILE)
    assert parsed
    return render(parsed)


class Nodes:
    """Nodes whose `underpass` prints what it is told, with a status."""

    def __init__(self) -> None:
        self.says: dict[str, tuple[int, Any, str]] = {}
        self.asked: list[tuple[str, list[str]]] = []

    def on_node(self, lab: Rendered, node: RenderedNode, words: Sequence[str], **_: Any) -> Completed:
        self.asked.append((node.name, list(words)))
        status, answer, complaint = self.says[node.name]
        return Completed(tuple(words), status, json.dumps(answer), complaint)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes()
    monkeypatch.setattr(ssh, "on_node", made.on_node)
    return made


def test_every_node_is_asked_in_its_own_words(lab: Rendered, nodes: Nodes) -> None:
    nodes.says = {"node-1": (0, [{"pod": "blue/a"}], ""), "node-2": (0, [{"pod": "blue/b"}], "")}
    answers = network.ask(lab, ["endpoints"])
    assert sorted(nodes.asked) == [
        (name, ["underpass", "endpoints", "-o", "json"]) for name in ("node-1", "node-2")
    ]
    assert answers.rows() == [{"node": "node-1", "pod": "blue/a"}, {"node": "node-2", "pod": "blue/b"}]


def test_a_silent_node_is_told_and_the_others_are_heard(lab: Rendered, nodes: Nodes) -> None:
    nodes.says = {
        "node-1": (0, [{"pod": "blue/a"}], ""),
        "node-2": (3, None, "underpass: the agent does not answer: Connection refused"),
    }
    answers = network.ask(lab, ["endpoints"])
    assert answers.rows() == [{"node": "node-1", "pod": "blue/a"}]
    assert answers.faults == ["node-2: the agent does not answer: Connection refused"]


def test_a_lab_with_no_agent_is_a_fault_of_its_nodes(lab: Rendered, nodes: Nodes) -> None:
    nodes.says = dict.fromkeys(("node-1", "node-2"), (3, None, "underpass: the agent does not answer"))
    with pytest.raises(LabError) as caught:
        network.ask(lab, ["status"])
    assert caught.value.code is ExitCode.NODE
    assert len(caught.value.details) == 2


def test_an_agents_row_names_its_faults() -> None:
    said = {
        "version": "1",
        "ready": True,
        "uptime_seconds": 5,
        "kubernetes": {"reachable": False, "faults": {"pod": "connection refused"}},
        "addresses": {"held": 2, "capacity": 250},
        "table_faults": {"policies": 3},
        "policies_not_valid": [{"policy": "NetworkPolicy blue/p", "faults": ["spec"]}],
        "forged_labels": {"blue/a": ["reserved:host"]},
        "redirect": {"self_test": {"works": False, "detail": "the programs did not see the connection"}},
    }
    (row,) = network.join_status(Answers({"one": said}))
    assert (row["api"], row["redirect"], row["addresses"]) == ("not reachable", "does not work", "2/250")
    assert [fault.partition(":")[0] for fault in row["faults"]] == [
        "pod",
        "table policies",
        "NetworkPolicy blue/p is not valid",
        "forged labels on blue/a",
        "socket redirect",
    ]


def test_identities_that_all_nodes_know_are_one_row() -> None:
    known = {"id": 300, "labels": {"k8s:app": "a"}}
    rows = network.join_identities(Answers({"one": [known], "two": [known, {"id": 7, "labels": {}}]}))
    assert [(row["id"], row["nodes"]) for row in rows] == [(7, ["two"]), (300, ["one", "two"])]


def test_services_that_differ_between_nodes_are_a_row_each() -> None:
    local = {**WEB, "backends": []}
    rows = network.join_services(Answers({"one": [WEB], "two": [local], "three": [WEB]}))
    assert [(row["backends"], row["nodes"]) for row in rows] == [
        ([], ["two"]),
        (["10.244.0.2:8080"], ["one", "three"]),
    ]


def test_a_policy_shows_the_pods_of_all_nodes_and_every_fault() -> None:
    policy = {"kind": "NetworkPolicy", "name": "blue/p", "valid": True, "faults": [], "rules": []}
    (row,) = network.join_policies(
        Answers(
            {
                "one": [{**policy, "endpoints": ["blue/a"]}],
                "two": [{**policy, "endpoints": ["blue/b"], "valid": False, "faults": ["spec: bad"]}],
            }
        )
    )
    assert (row["endpoints"], row["valid"], row["faults"]) == (["blue/a", "blue/b"], False, ["spec: bad"])
    assert row["nodes"] == ["one", "two"]


def traced(egress: tuple[str, bool], ingress: tuple[str, bool]) -> dict[str, Any]:
    sides = [
        {"direction": direction, "verdict": verdict, "rule": "r", "here": here}
        for direction, (verdict, here) in (("egress", egress), ("ingress", ingress))
    ]
    return {"source_identity": 1, "target_identity": 2, "protocol": "TCP", "port": 80, "sides": sides}


def test_each_side_of_a_trace_is_told_by_the_node_that_enforces_it() -> None:
    found = network.join_trace(
        Answers(
            {
                "one": traced(("allow", True), ("allow", False)),
                "two": traced(("deny", False), ("deny", True)),
            }
        )
    )
    assert found["verdict"] == "deny"
    assert [(side["direction"], side["verdict"], side["node"]) for side in found["sides"]] == [
        ("egress", "allow", "one"),
        ("ingress", "deny", "two"),
    ]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The `lab` command on the lab of the fixtures: status, stdout, stderr."""
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lab", "--lab", "joined", *words])
        command.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def known(lab: Rendered, monkeypatch: pytest.MonkeyPatch) -> Rendered:
    monkeypatch.setattr("lab.render.read", lambda _: lab)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return lab


def test_the_command_prints_tables_and_json(
    known: Rendered, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes.says = {"node-1": (0, [WEB], ""), "node-2": (0, [WEB], "")}
    status, out, _ = run(capsys, "services")
    assert status == 0
    assert "default/web:80/TCP" in out
    assert "node-1,node-2" in out
    status, out, _ = run(capsys, "services", "--node", "node-2", "-o", "json")
    assert json.loads(out) == [{**WEB, "nodes": ["node-2"]}]


def test_a_denied_trace_and_a_missing_node_have_a_status_of_their_own(
    known: Rendered, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = traced(("allow", True), ("deny", True))
    nodes.says = {"node-1": (4, answer, ""), "node-2": (4, answer, "")}
    status, out, _ = run(capsys, "policy", "trace", "blue/a", "blue/b", "--port", "80")
    assert (status, "deny" in out) == (ExitCode.DENIED, True)
    nodes.says = {"node-1": (0, [], ""), "node-2": (3, None, "underpass: gone")}
    status, out, err = run(capsys, "maps")
    assert status == ExitCode.NODE
    assert "node-2: gone" in err


def test_a_node_that_is_none_is_wrong_usage(
    known: Rendered, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "endpoints", "--node", "nowhere")[0] == ExitCode.USAGE


EXPLAINED = {
    "source": "blue/b",
    "target": "blue/c",
    "port": 0,
    "next": {"accelerated": False, "reason": "opted-out", "why": "the pod or the port asks for it"},
    "connections": [
        {
            "client": "10.244.1.2:4000",
            "client_pod": "blue/b",
            "server": "10.244.1.3:80",
            "server_pod": "blue/c",
            "accelerated": False,
            "reason": "sent-first",
            "why": "bytes left before both ends were ready",
            "note": "its client would be better off with TCP (slow-reader) but stays",
            "age_seconds": 1.0,
            "from_client": {"messages": 0, "bytes": 0, "tcp_bytes": 7},
            "from_server": {"messages": 0, "bytes": 0, "tcp_bytes": 9},
        }
    ],
}


def test_explain_asks_the_node_of_the_source(
    known: Rendered, nodes: Nodes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = {"node-1": [], "node-2": [{"pod": "blue/b", "address": "10.244.1.2"}]}

    def on_node(lab: Rendered, node: RenderedNode, words: Sequence[str], **_: Any) -> Completed:
        nodes.asked.append((node.name, list(words)))
        answer = pods[node.name] if "endpoints" in words else EXPLAINED
        return Completed(tuple(words), 0, json.dumps(answer), "")

    monkeypatch.setattr(ssh, "on_node", on_node)
    status, out, _ = run(capsys, "explain", "blue/b", "blue/c", "--port", "80")
    assert status == 0
    asked = ["underpass", "explain", "blue/b", "blue/c", "--port", "80", "-o", "json"]
    assert [one for one in nodes.asked if "explain" in one[1]] == [("node-2", asked)]
    assert "sent-first: bytes left before both ends were ready" in out
    assert "would stay with TCP: opted-out" in out
    assert "blue/b 10.244.1.2:4000: its client would be better off with TCP (slow-reader) but stays" in out
    status, out, _ = run(capsys, "explain", "blue/b", "-o", "json")
    assert json.loads(out)["connections"][0]["node"] == "node-2"
    assert run(capsys, "explain", "blue/nobody")[0] == ExitCode.NOT_THERE

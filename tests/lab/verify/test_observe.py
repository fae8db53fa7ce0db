"""Area observe: what the network does can be seen, from the learner's machine and by Prometheus."""

from __future__ import annotations

import json
import signal
import threading

from prometheus_client.parser import text_string_to_metric_families

from lab.errors import ExitCode
from lab.render import Rendered, RenderedNode
from tests.lab.command import LabCommand
from tests.lab.conftest import Evidence
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.waiting import until

RESIDENT_MIB = 120


def test_every_pod_is_shown_with_its_node(
    lab: Rendered, command: LabCommand, pods: Pods, evidence: Evidence
) -> None:
    """`lab endpoints` shows every pod once, on its node and with its address"""
    shown = [(row["pod"], row["node"], row["address"]) for row in command.json("endpoints")]
    for node, letter in zip(lab.nodes, "ab", strict=False):
        for number in range(2):
            name = f"{letter}-{number}"
            assert shown.count((f"{pods.namespace}/{name}", node.name, pods.address(name))) == 1
    evidence(f"{len(shown)} pods on {len({node for _, node, _ in shown})} nodes")


def test_all_nodes_know_the_same_identities_and_services(
    lab: Rendered, command: LabCommand, pods: Pods, evidence: Evidence
) -> None:
    """`lab identities` and `lab services` are the same on every node"""
    names = [node.name for node in lab.nodes]
    # A pod's hostPort is its own node's alone, at that node's address.
    own_ports = [([node.name], node.address) for node in lab.nodes]

    def differing() -> list[object]:
        services = [
            row for row in command.json("services") if (row["nodes"], row["address"]) not in own_ports
        ]
        return [row for row in command.json("identities") + services if row["nodes"] != names]

    until(lambda: not differing(), "all nodes know the same", 30)
    evidence(f"{len(command.json('identities'))} identities, {len(command.json('services'))} frontends")


def test_every_agent_and_map_is_well(command: LabCommand, evidence: Evidence) -> None:
    """`lab agents` shows every agent ready, and no map is near its end"""
    agents = command.json("agents")
    evidence(", ".join(f"{row['node']} {row['version']} ready={row['ready']}" for row in agents))
    assert all(row["ready"] and row["api"] == "reachable" and not row["faults"] for row in agents)
    full = [
        row for row in command.json("maps") if row["entries"] != "-" and row["entries"] > row["capacity"] / 2
    ]
    assert not full


def test_a_trace_foretells_what_a_connection_meets(
    lab: Rendered, command: LabCommand, pods: Pods, evidence: Evidence
) -> None:
    """`lab policy trace` gives the verdict that a connection gets, and names the policy"""
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "a-1"}}},
    }
    client = "b-0" if len(lab.nodes) > 1 else "a-0"
    ends = [f"{pods.namespace}/{name}" for name in (client, "a-1")]
    words = ["policy", "trace", *ends, "--port", str(SERVER_PORT)]
    assert command(*words, "-o", "json").returncode == 0
    pods.apply(document)
    try:
        until(lambda: command(*words).returncode == ExitCode.DENIED, "the trace says deny", 20)
        traced = json.loads(command(*words, "-o", "json").stdout)
        (side,) = (side for side in traced["sides"] if side["direction"] == "ingress")
        evidence(f"{side['direction']} {side['verdict']} on {side['node']}: {side['rule']}")
        assert pods.talk(client, pods.address("a-1"), limit=1) == "ETIMEDOUT"
        (shown,) = command.json("policy", "get", "closed")
        assert shown["endpoints"] == [f"{pods.namespace}/a-1"]
    finally:
        pods.cluster.kubectl("delete", "networkpolicy", "closed", "-n", pods.namespace)
    until(lambda: command(*words).returncode == 0, "the trace says allow again", 20)


def test_flows_show_a_connection_on_both_its_nodes(
    lab: Rendered, command: LabCommand, pods: Pods, evidence: Evidence
) -> None:
    """`lab flows` shows a connection as each end's node sees it"""
    client, server = f"{pods.namespace}/a-0", f"{pods.namespace}/{'b-0' if len(lab.nodes) > 1 else 'a-1'}"
    wanted = {(client, "egress"), (server, "ingress")}
    seen: set[tuple[str, str]] = set()
    watching = command.start("flows", "-o", "json")

    def read() -> None:
        for line in watching.stdout or ():
            flow = json.loads(line)
            if flow["reason"] == "opened" and f":{SERVER_PORT}" in flow["local"] + flow["peer"]:
                seen.add((flow["endpoint"], flow["direction"]))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    name = server.split("/")[1]
    try:
        # The first connections may be over before the agents are watched.
        until(lambda: pods.talk("a-0", pods.address(name)) and wanted <= seen, "both ends' flows are shown")
    finally:
        watching.send_signal(signal.SIGINT)
        _, complaints = watching.communicate(timeout=30)
    evidence(sorted(seen))
    assert not complaints


def test_prometheus_reads_every_node(
    host: object, node: RenderedNode, pods: Pods, evidence: Evidence
) -> None:
    """An agent's metrics are read by Prometheus' own parser and count packets by what became of them"""
    text = connect_text(host, "curl -sf http://127.0.0.1:9964/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    packets = {
        sample.labels["reason"]: sample.value
        for sample in samples
        if sample.name == "underpass_packets_total"
    }
    evidence(f"{len(samples)} samples; to-pod {packets.get('to-pod', 0):g}")
    assert packets["to-pod"] > 0
    assert next(s.value for s in samples if s.name == "underpass_ready") == 1
    resident = next(s.value for s in samples if s.name == "underpass_agent_process_resident_memory_bytes")
    assert resident <= RESIDENT_MIB << 20, f"the agent holds {resident / (1 << 20):.0f} MiB"


def test_the_agents_log_is_data(host: object, evidence: Evidence) -> None:
    """Every line that the agent logs is one JSON object with event, level and time"""
    text = connect_text(host, "journalctl -u underpass-agent _COMM=python3 -o cat --no-pager -n 200")
    lines = [json.loads(line) for line in text.splitlines()]
    evidence(f"{len(lines)} lines, levels {sorted({line['level'] for line in lines})}")
    assert lines
    assert all(line["event"] and line["timestamp"] for line in lines)


def connect_text(host: object, command: str) -> str:
    text: str = host.check_output(command)  # type: ignore[attr-defined]
    return text

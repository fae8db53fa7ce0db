"""`lab measure network`: what is promised of the network, measured on a running lab, ratios first.

Same node and across nodes beside a plain bridge and VXLAN without BPF, in interleaved rounds; how soon a
policy holds; what a pod's start costs; what Services cost; what the agent needs.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lab.cluster import Cluster
from lab.measure import agent_cost, enforcement, revocation, services_cost, tools
from lab.measure.plain import ADDRESSES, plain
from lab.measure.shell import Shell
from lab.measure.statistics import figure, ratios
from lab.measure.workload import Workload, container, workload
from lab.render import Rendered
from lab.steps import Steps

NAMESPACE = "underpass-measure"

#: Sends a pod's traffic by plain TCP: this measures the packet path.
PACKETS_ONLY = {"underpass.dev/redirect": "disabled"}

_ECHO, _IPERF = 11111, 5201
SERVERS = {
    "echo": ["sockperf", "server", "--tcp", "-i", "0.0.0.0", "-p", str(_ECHO)],  # noqa: S104
    "iperf": ["iperf3", "--server", "--port", str(_IPERF)],
}


@dataclass(frozen=True)
class Size:
    """How much is measured. Seconds are those of one measurement of one path in one round."""

    rounds: int
    seconds: int
    pods_a_node: int
    policies: int
    policy_changes: int
    revocations: int
    services: int
    connects: int
    idle_seconds: int
    rest_seconds: int = 3  # before connects, for what made and wrote the Services is still at work


TINY = Size(
    rounds=1, seconds=1, pods_a_node=1, policies=2, policy_changes=2, revocations=2, services=20, connects=20,
    idle_seconds=1, rest_seconds=0,
)  # fmt: skip
QUICK = Size(
    rounds=5, seconds=1, pods_a_node=5, policies=20, policy_changes=20, revocations=10, services=500,
    connects=300, idle_seconds=15,
)  # fmt: skip
FULL = Size(
    rounds=11, seconds=2, pods_a_node=30, policies=100, policy_changes=200, revocations=50, services=10_000,
    connects=1000, idle_seconds=60,
)  # fmt: skip

AREAS = ("paths", "pods", "policy", "services", "agent")


def measure(
    lab: Rendered, cluster: Cluster, steps: Steps, size: Size, areas: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The figures of the chosen areas. The lab has two nodes; its namespace is removed at the end."""
    rows: list[dict[str, Any]] = []
    with workload(lab, cluster, NAMESPACE) as pods:
        if "paths" in areas:
            with steps.step("paths", "Compare with a plain bridge and VXLAN"):
                rows += _paths(lab, pods, steps, size)
        if {"pods", "policy", "agent"} & set(areas):
            with steps.step("pods", f"Start {size.pods_a_node} pods a node"):
                started = enforcement.start_pods(lab, pods, size.pods_a_node)
            if "pods" in areas:
                rows += started
            if "policy" in areas:
                with steps.step(
                    "policy", f"Change a policy {size.policy_changes} times among {size.policies}"
                ):
                    rows += enforcement.policy_changes(lab, pods, size.policies, size.policy_changes)
                with steps.step("resets", f"Revoke connections {size.revocations} times"):
                    rows += revocation.resets(lab, pods, size.revocations)
            if "agent" in areas:
                with steps.step("agent", f"Watch the agents for {size.idle_seconds} s"):
                    rows += agent_cost.agents(lab, size.idle_seconds)
        if "services" in areas:
            with steps.step("services", f"Connect to a Service among 10, then among {size.services}"):
                rows += services_cost.connects(
                    lab, pods, size.services, size.rounds, size.connects, size.rest_seconds
                )
    return rows


Once = Callable[[Shell, str], float]


def _paths(lab: Rendered, pods: Workload, steps: Steps, size: Size) -> list[dict[str, Any]]:
    near, far = lab.nodes[0], lab.nodes[-1]
    servers = [container(name, command) for name, command in SERVERS.items()]
    pods.apply(
        pods.pod("client", near, [container("client", ["sleep", "infinity"])], annotations=PACKETS_ONLY),
        pods.pod("near", near, servers, annotations=PACKETS_ONLY),
        pods.pod("far", far, servers, annotations=PACKETS_ONLY),
    )
    pods.ready("client", "near", "far")
    with ExitStack() as stack:
        client = stack.enter_context(pods.shell("client"))
        mtu = int(client.ask("cat /sys/class/net/eth0/mtu"))
        base = stack.enter_context(plain(lab, near, pods.field("client", "metadata.uid"), mtu))
        for part in ("b", "c"):
            for command in SERVERS.values():
                base.serve(part, command)
        from_plain = stack.enter_context(base.shell("a"))
        ends = {
            "same node": (client, pods.field("near", "status.podIP")),
            "bridge": (from_plain, ADDRESSES["b"]),
            "across nodes": (client, pods.field("far", "status.podIP")),
            "VXLAN": (from_plain, ADDRESSES["c"]),
        }
        for shell, address in ends.values():
            for port in (_ECHO, _IPERF):
                _wait_for(shell, address, port)
        kinds: dict[str, Once] = {"latency": _latency(size.seconds), "throughput": _throughput(size.seconds)}
        seen: dict[tuple[str, str], list[float]] = {}
        for number in range(size.rounds):
            if step := steps.all[-1]:
                step.say(f"round {number + 1} of {size.rounds}")
            order = list(ends) if number % 2 == 0 else list(reversed(ends))
            for kind, once in kinds.items():
                for name in order:
                    seen.setdefault((kind, name), []).append(once(*ends[name]))
    pods.cluster.kubectl("delete", "pod", "-n", pods.namespace, "client", "near", "far", "--now")
    rows = []
    for ours, theirs in (("same node", "bridge"), ("across nodes", "VXLAN")):
        quicker = ratios(seen["latency", theirs], seen["latency", ours])
        wider = ratios(seen["throughput", ours], seen["throughput", theirs])
        rows.append(figure(f"latency, {theirs} to {ours}", "x", quicker, at_least=0.95))
        rows.append(figure(f"throughput, {ours} to {theirs}", "x", wider, at_least=0.95))
    for (kind, name), values in seen.items():
        unit = "us" if kind == "latency" else "Gbit/s"
        rows.append(figure(f"{kind}, {name}", unit, values))
    return rows


def _latency(seconds: int) -> Once:
    """The median round trip of 256 bytes, in us."""

    def once(shell: Shell, address: str) -> float:
        words = f"sockperf ping-pong --tcp --full-rtt -i {address} -p {_ECHO} -m 256 -t {seconds}"
        return tools.sockperf_latency(shell.ask(words, timeout=seconds + 20)).percentiles[50.0]

    return once


def _throughput(seconds: int) -> Once:
    """One stream, Gbit/s."""

    def once(shell: Shell, address: str) -> float:
        words = f"iperf3 --client {address} --port {_IPERF} --time {seconds} --json"
        return tools.iperf(shell.ask(words, timeout=seconds + 20)) * 8 / 1e9

    return once


def _wait_for(shell: Shell, address: str, port: int) -> None:
    """Wait until a server answers."""
    word = shlex.quote(f"until : 2>/dev/null </dev/tcp/{address}/{port}; do sleep 0.1; done")
    shell.ask(f"timeout 20 bash -c {word}", timeout=25)

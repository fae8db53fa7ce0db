"""What a request through two Istio sidecars of one node takes, plain and accelerated, and where it goes.

Both paths are of the same programs (wrk, Envoy, Envoy, nginx) on the same node under STRICT, in rounds
that take turns; the plain one has opted out of socket redirect by annotation. The agent is asked, leg by leg,
which of them is accelerated: what is measured is what the names say.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from lab.cluster import Cluster
from lab.errors import ExitCode, die
from lab.measure import tools
from lab.measure.latency import paths
from lab.measure.latency.result import FREE, GRAPH_SIZE, Row, at, series
from lab.measure.network import PACKETS_ONLY
from lab.measure.shell import Shell
from lab.measure.statistics import figure, ratios
from lab.measure.workload import Workload, container, node_shell, workload
from lab.render import Rendered, RenderedNode
from lab.steps import Steps

NAMESPACE = "underpass-sidecars"
NAME = "sidecars"  # of both paths together
PLAIN, ACCELERATED = "sidecars, plain", "sidecars, accelerated"
#: The pods' names end so.
_SUFFIX = {PLAIN: "plain", ACCELERATED: "fast"}

#: Accelerated to plain, at most.
P50, P99, CPU = 0.85, 1.0, 0.95

#: The programs that a request passes, in its order: what they are called, pod, container.
HOPS = (
    ("client", "client", "client"),
    ("client's Envoy", "client", "istio-proxy"),
    ("server's Envoy", "server", "istio-proxy"),
    ("server", "server", "web"),
)


@dataclass(frozen=True)
class Spent:
    """Microseconds of CPU that a container used, and how much of that in user and in kernel mode.

    Kernels tell the parts by sampling: only their ratio is used.
    """

    total: float
    user: float = 0.0
    kernel: float = 0.0

    def since(self, before: Spent, requests: int) -> Spent:
        """What a request of `requests` took."""
        return Spent(
            (self.total - before.total) / requests,
            (self.user - before.user) / requests,
            (self.kernel - before.kernel) / requests,
        )

    @property
    def in_kernel(self) -> float:
        """Microseconds in the kernel."""
        both = self.user + self.kernel
        return self.total * self.kernel / both if both else 0.0


@dataclass
class Found:
    """`rows` as those of `lab measure latency`; `spent`: path -> hop -> a request's CPU in each round."""

    rows: list[Row] = field(default_factory=list)
    spent: dict[str, dict[str, list[Spent]]] = field(default_factory=dict)


@dataclass
class _Path:
    name: str
    client: Shell
    url: str
    usage: dict[str, str]  # hop -> the files that tell its CPU time


def measure(lab: Rendered, cluster: Cluster, steps: Steps, rounds: int, seconds: int) -> Found:
    """Measure both paths on the lab's last node, `seconds` at a time. Raises `LabError`."""
    if lab.istio_version is None:
        die(f"lab {lab.id} has no Istio", hint="set istio.enabled in its lab file", code=ExitCode.USAGE)
    node, found = lab.nodes[-1], Found()
    with workload(lab, cluster, NAMESPACE) as pods, ExitStack() as stack:
        with steps.step("sidecars", "Start pods with sidecars"):
            shell = stack.enter_context(node_shell(lab, node))
            ways = _start(pods, node, shell, stack)
            for way in ways:
                _must_be(pods, shell, way)
        with steps.step("mesh", "Measure the path through two sidecars") as step:
            for number in range(rounds):
                step.say(f"round {number + 1} of {rounds}")
                for way in ways if number % 2 == 0 else list(reversed(ways)):
                    _round(shell, way, number, seconds, found)
    return found


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The targets: ratios of accelerated to plain within a round; empty without rows of both paths."""
    lines: list[dict[str, Any]] = []
    wanted = {"kind": "http", "mode": FREE, "size": GRAPH_SIZE, "connections": 1}
    for name, value, most in (
        ("p50", at(50.0), P50),
        ("p99", at(99.0), P99),
        ("CPU a request", lambda row: row.cpu, CPU),
    ):
        found = series(rows, value, **wanted)
        both = sorted(found.get(PLAIN, {}).keys() & found.get(ACCELERATED, {}).keys())
        if both:
            values = ratios([found[ACCELERATED][n] for n in both], [found[PLAIN][n] for n in both])
            lines.append(
                {"mode": FREE, **figure(f"sidecars accelerated to plain, {name}", "x", values, at_most=most)}
            )
    failed = [float(row.errors) for row in rows if row.path in (PLAIN, ACCELERATED)]
    if failed:
        lines.append({"mode": FREE, **figure("sidecars, errors", "", failed, at_most=0, share=1)})
    return lines


def breakdown(found: Found) -> list[dict[str, Any]]:
    """Where a request's time goes: microseconds of CPU by program, in the kernel and not, and what is left.

    One request is under way at a time, so what no program's CPU time accounts for is waiting: to be woken,
    for a CPU, for what else runs on them. Less than nothing is left where two programs work at once.
    """
    lines = []
    for path, hops in found.spent.items():
        whole = 0.0
        for hop, values in hops.items():
            total = statistics.median(one.total for one in values)
            kernel = statistics.median(one.in_kernel for one in values)
            whole += total
            lines.append(_line(path, hop, total, kernel))
        mean = statistics.median(1e6 / row.rate for row in found.rows if row.path == path)
        lines.append(
            _line(path, "all programs", whole, sum(one["kernel_us"] for one in lines if one["path"] == path))
        )
        lines.append({"path": path, "where": "the rest: waiting", "us": round(mean - whole, 1)})
        lines.append({"path": path, "where": "a request, mean", "us": round(mean, 1)})
    return lines


def _line(path: str, where: str, total: float, kernel: float) -> dict[str, Any]:
    return {
        "path": path,
        "where": where,
        "us": round(total, 1),
        "own_us": round(total - kernel, 1),
        "kernel_us": round(kernel, 1),
    }


def _round(shell: Shell, way: _Path, number: int, seconds: int, found: Found) -> None:
    before = _usage(shell, way)
    words = f"wrk --latency --threads 1 --connections 1 --duration {seconds}s --timeout 10s {way.url}"
    seen = tools.wrk_latency(way.client.ask(words, timeout=seconds + 30))
    after = _usage(shell, way)
    requests = max(1, seen.requests)
    hops = {hop: after[hop].since(before[hop], requests) for hop in after}
    for hop, spent in hops.items():
        found.spent.setdefault(way.name, {}).setdefault(hop, []).append(spent)
    cpu = sum(spent.total for spent in hops.values())
    found.rows.append(
        Row("http", FREE, way.name, number, GRAPH_SIZE, 1, seen.percentiles, seen.rate, cpu, seen.errors)
    )


def _usage(shell: Shell, way: _Path) -> dict[str, Spent]:
    return {hop: spent(shell.ask(f"cat {files}")) for hop, files in way.usage.items()}


def spent(text: str) -> Spent:
    """What the files of a container's cgroup tell: `cpu.stat`, or `cpuacct.usage` with `_user` and `_sys`."""
    words = text.split()
    if "usage_usec" in words:
        told = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        return Spent(told["usage_usec"], told["user_usec"], told["system_usec"])
    return Spent(*(int(word) / 1000 for word in words))


def _usage_files(shell: Shell, container: str) -> str:
    """The files that tell a container's CPU time, for cgroup v1 and v2."""
    told = shell.ask(f"find /sys/fs/cgroup -path '*{container}/cpu*'", fails=True).split()
    if files := [file for file in told if file.endswith("/cpuacct.usage")]:
        return " ".join(f"{files[0]}{part}" for part in ("", "_user", "_sys"))
    if not (files := [file for file in told if file.endswith("/cpu.stat")]):
        die(
            "the node does not tell the CPU time of containers",
            hint="see /sys/fs/cgroup there",
            code=ExitCode.NODE,
        )
    return files[0]


def _start(pods: Workload, node: RenderedNode, shell: Shell, stack: ExitStack) -> list[_Path]:
    pods.cluster.kubectl("label", "namespace", pods.namespace, "istio-injection=enabled")
    pods.apply(*_common(), *(document for path in _SUFFIX for document in documents(pods, node, path)))
    pods.ready(*(f"{pod}-{suffix}" for suffix in _SUFFIX.values() for pod in ("client", "server")))
    ways = []
    for path, suffix in _SUFFIX.items():
        client = stack.enter_context(pods.shell(f"client-{suffix}", "client"))
        url = f"http://server-{suffix}/{GRAPH_SIZE}"
        # Sidecars learn of a Service in their time.
        asks = f"wrk -c 1 -t 1 -d 1 {url} | grep -q Latency && ! wrk -c 1 -t 1 -d 1 {url} | grep -q Non-2xx"
        client.ask(f"timeout 40 bash -c 'until {asks}; do sleep 0.2; done'", timeout=45)
        usage = {
            hop: _usage_files(shell, _container(pods, f"{pod}-{suffix}", name)) for hop, pod, name in HOPS
        }
        ways.append(_Path(path, client, url, usage))
    return ways


def _container(pods: Workload, pod: str, name: str) -> str:
    """A container's id."""
    done = pods.cluster.kubectl("get", "pod", pod, "-n", pods.namespace, "-o", "json")
    status = json.loads(done.stdout)["status"]
    every = status["containerStatuses"] + status["initContainerStatuses"]
    return str(next(one["containerID"] for one in every if one["name"] == name)).rpartition("/")[2]


def _must_be(pods: Workload, shell: Shell, way: _Path) -> None:
    """Refuse to measure what is not what its name says, leg by leg, by the word of the node's agent."""
    client, server = (f"{pods.namespace}/{pod}-{_SUFFIX[way.name]}" for pod in ("client", "server"))
    way.client.ask(f"(wrk -c 1 -t 1 -d 3 {way.url} >/dev/null 2>&1 &)")
    told = {
        f"{one} to {other}": json.loads(shell.ask(f"underpass explain {one} {other} -o json"))["connections"]
        for one, other in ((client, client), (client, server), (server, server))
    }
    for leg, connections in told.items():
        fast = any(carries(one) for one in connections)
        if fast != (way.name == ACCELERATED):
            reasons = sorted({one["reason"] for one in connections} - {""})
            die(
                f"{leg}: the path {way.name} is not what its name says: {', '.join(reasons) or 'untold why'}",
                hint="`lab explain` shows each connection and why",
                code=ExitCode.NOT_VERIFIED,
            )


def carries(connection: Mapping[str, Any]) -> bool:
    """Whether messages of a connection, as `underpass explain` tells it, go from socket to socket."""
    ways = (connection["from_client"], connection["from_server"])
    return bool(connection["accelerated"]) and any(way["messages"] > way["tcp_messages"] for way in ways)


def _common() -> list[dict[str, Any]]:
    """The server's settings, and TLS between the sidecars without exception."""
    strict = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    return [strict, paths.config_map("servers", {"web.conf": paths.config("web.conf")})]


def documents(pods: Workload, node: RenderedNode, path: str) -> list[dict[str, Any]]:
    """Client, server and Service of a path."""
    suffix = _SUFFIX[path]
    notes = PACKETS_ONLY if path == PLAIN else {}
    server = f"server-{suffix}"
    web = container("web", paths.web_command())
    web["volumeMounts"] = [{"name": "files", "mountPath": "/etc/measure"}]
    files: dict[str, Any] = {"volumes": [{"name": "files", "configMap": {"name": "servers"}}]}
    return [
        pods.pod(f"client-{suffix}", node, [container("client", ["sleep", "infinity"])], annotations=notes),
        pods.pod(server, node, [web], annotations=notes, **files),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": server},
            "spec": {
                "selector": {"app": server},
                "ports": [{"name": "http", "port": 80, "targetPort": paths.WEB}],
            },
        },
    ]

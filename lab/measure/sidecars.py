"""`lab measure sidecars`: what a request through two Istio sidecars of one node takes, plain and accelerated.

Both paths are of the same programs, on the same node, in rounds that take turns; the plain one has opted out
of socket redirect by annotation. The agent is asked which of them is accelerated: what is measured is what
the names say.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import builds, ssh
from lab.cluster import Cluster
from lab.errors import ExitCode, die
from lab.render import Rendered, RenderedNode
from lab.steps import Step

NAMESPACE = "measure-sidecars"
PLAIN, ACCELERATED = "plain", "accelerated"
#: Accelerated to plain, at most.
TARGETS = {"p50": 0.85, "p99": 1.0, "cpu": 0.95}
WARM_UP = 200
PORT = 8080

#: Seconds of CPU that all processes of the pods with these uids have had.
_CPU = """
import os, pathlib, sys
total = 0
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if any(f"/pod{uid}/" in (process / "cgroup").read_text() for uid in sys.argv[1:]):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    except OSError: pass
print(total / os.sysconf("SC_CLK_TCK"))
"""


@dataclass
class Path:
    """One path: its rounds' percentiles in microseconds, CPU microseconds a request, and what failed."""

    name: str
    uids: list[str] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p90: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    errors: int = 0

    def to_dict(self) -> dict[str, Any]:
        figures = {
            name: round(statistics.median(getattr(self, name)), 1) for name in ("p50", "p90", "p99", "cpu")
        }
        spread = (max(self.p50) - min(self.p50)) / statistics.median(self.p50)
        return {
            "path": f"sidecars, {self.name}",
            **figures,
            "spread": round(spread, 2),
            "errors": self.errors,
        }


def measure(lab: Rendered, step: Step, rounds: int, requests: int) -> dict[str, Any]:
    """Rows `paths` in microseconds, and `ratios` of accelerated to plain. Raises `LabError`."""
    if lab.istio_version is None:
        die(f"lab {lab.id} has no Istio", hint="set istio.enabled in its lab file", code=ExitCode.USAGE)
    cluster = Cluster(lab, builds.locate()["kubernetes"].path / "bin")
    node = lab.nodes[0]
    paths = [Path(PLAIN), Path(ACCELERATED)]
    with _pods(cluster, node, paths, step):
        for path in paths:
            _wait_answers(cluster, path.name)
            _run(cluster, path.name, WARM_UP)
            _must_be(lab, node, path.name)
        for number in range(rounds):
            step.say(f"round {number + 1} of {rounds}")
            # Each begins as often as the other: what a round leaves behind falls on both alike.
            for path in paths if number % 2 else reversed(paths):
                _round(cluster, lab, node, path, requests)
    plain, fast = (path.to_dict() for path in paths)
    ratios = [
        {"of": of, "ratio": (ratio := round(fast[of] / plain[of], 3)), "target": most, "met": ratio <= most}
        for of, most in TARGETS.items()
    ]
    return {"paths": [plain, fast], "ratios": ratios, "rounds": rounds, "requests": requests}


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _round(cluster: Cluster, lab: Rendered, node: RenderedNode, path: Path, requests: int) -> None:
    before = _cpu(lab, node, path.uids)
    seconds, failed = _run(cluster, path.name, requests)
    used = _cpu(lab, node, path.uids) - before
    micro = [value * 1e6 for value in seconds]
    path.p50.append(percentile(micro, 0.50))
    path.p90.append(percentile(micro, 0.90))
    path.p99.append(percentile(micro, 0.99))
    path.cpu.append(used * 1e6 / requests)
    path.errors += failed


def _run(cluster: Cluster, name: str, requests: int) -> tuple[list[float], int]:
    """Requests on one connection from the client of a path: seconds of each, and how many failed."""
    url = f"http://server-{name}/status/200?number=[1-{requests}]"
    form = "%{http_code} %{time_total}\\n"
    client = ("exec", "-n", NAMESPACE, f"client-{name}", "--")
    done = cluster.kubectl(
        *client, "curl", "-s", "-o", "/dev/null", "-w", form, url, timeout=300, ok=range(256)
    )
    answers = [line.split() for line in done.stdout.splitlines()]
    good = [float(seconds) for status, seconds in answers if status == "200"]
    if not good:
        die(
            f"no request of the path {name} was answered",
            details=done.stderr.splitlines()[-5:],
            code=ExitCode.NODE,
        )
    return good, requests - len(good)


def _wait_answers(cluster: Cluster, name: str) -> None:
    """Wait until the first request of a path is answered: sidecars learn of a Service in their time."""
    deadline = time.monotonic() + 30
    command = ("exec", "-n", NAMESPACE, f"client-{name}", "--", "curl", "-sf", "-o", "/dev/null")
    while (done := cluster.kubectl(*command, f"http://server-{name}/status/200", ok=range(256))).status:
        if time.monotonic() > deadline:
            die(
                f"the path {name} does not answer",
                details=done.stderr.splitlines()[-5:],
                code=ExitCode.NODE,
            )
        time.sleep(0.5)


def _cpu(lab: Rendered, node: RenderedNode, uids: list[str]) -> float:
    return float(ssh.on_node(lab, node, ["python3", "-c", _CPU, *uids]).stdout)


def _must_be(lab: Rendered, node: RenderedNode, name: str) -> None:
    """Refuse to measure what is not what its name says, by the word of the node's agent."""
    pods = (f"{NAMESPACE}/client-{name}", f"{NAMESPACE}/server-{name}")
    answer = json.loads(ssh.on_node(lab, node, ["underpass", "explain", *pods, "-o", "json"]).stdout)
    states = {one["accelerated"] for one in answer["connections"]}
    if (name == ACCELERATED) not in states:
        reasons = sorted({one["reason"] for one in answer["connections"]} - {""})
        die(
            f"the path {name} is not {name}: {', '.join(reasons) or 'its connections say otherwise'}",
            hint="`lab explain` shows each connection and why",
            code=ExitCode.NODE,
        )


@contextmanager
def _pods(cluster: Cluster, node: RenderedNode, paths: list[Path], step: Step) -> Iterator[None]:
    """A client and a server for each path, all on `node`; gone at the end."""
    images = {
        name: json.loads((builds.locate()[artifact].path / "index.json").read_text())[f"{name}.tar"]
        for artifact, name in (("sample-images", "httpbin"), ("sample-images", "curl"))
    }
    remove = ("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=90s")
    step.say("starting the pods")
    cluster.kubectl(*remove, timeout=100)
    try:
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(_namespace()))
        _wait_account(cluster)
        documents = [document for path in paths for document in _documents(path.name, node.name, images)]
        cluster.kubectl(
            "apply",
            "-n",
            NAMESPACE,
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}),
        )
        wait = ("wait", "-n", NAMESPACE, "--for=condition=Ready", "pod", "--all", "--timeout=90s")
        cluster.kubectl(*wait, timeout=100)
        for path in paths:
            names = (f"client-{path.name}", f"server-{path.name}")
            uid = ("get", "pod", *names, "-n", NAMESPACE, "-o", "jsonpath={.items[*].metadata.uid}")
            path.uids = cluster.kubectl(*uid).stdout.split()
        yield
    finally:
        cluster.kubectl(*remove, "--wait=false", timeout=100)


def _wait_account(cluster: Cluster) -> None:
    deadline = time.monotonic() + 30
    ask = ("get", "serviceaccount", "default", "-n", NAMESPACE)
    while cluster.kubectl(*ask, ok=range(256)).status:
        if time.monotonic() > deadline:
            die(f"the namespace {NAMESPACE} gets no service account", code=ExitCode.NODE)
        time.sleep(0.2)


def _namespace() -> dict[str, Any]:
    labels = {"istio-injection": "enabled"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def _documents(path: str, node: str, images: dict[str, str]) -> list[dict[str, Any]]:
    """Client, server and Service of a path."""

    def pod(name: str, container: dict[str, Any]) -> dict[str, Any]:
        annotations = {"underpass.dev/redirect": "disabled"} if path == PLAIN else {}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "imagePullPolicy": "Never", **container}],
            },
        }

    server = f"server-{path}"
    return [
        pod(f"client-{path}", {"image": images["curl"], "command": ["sleep", "infinity"]}),
        pod(server, {"image": images["httpbin"]}),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": server},
            "spec": {
                "selector": {"app": server},
                "ports": [{"name": "http", "port": 80, "targetPort": PORT}],
            },
        },
    ]

"""How long a pod takes to start, its network in it, and how soon after a change a policy holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from subprocess import PIPE, Popen
from typing import Any

from urllib3.exceptions import HTTPError

from lab import ssh
from lab.errors import ExitCode, die
from lab.measure import api, tools
from lab.measure.statistics import bucket_quantile, figure
from lab.measure.workload import IDLE_SHARE, Workload, container, python
from lab.render import Rendered, RenderedNode

_PORT = 9000
_METRICS = ("curl", "--silent", "--fail", "http://127.0.0.1:9964/metrics")
LONGEST = 30.0  # seconds that one pod or one policy may take


def start_pods(lab: Rendered, pods: Workload, a_node: int) -> list[dict[str, Any]]:
    """Start `a_node` pods on each node, one after the other, and leave them there.

    From the request to the API server to the pod being ready, as a client of the API sees it.
    """
    core = api.core(pods.cluster)
    before = {node.name: _adds(lab, node) for node in lab.nodes}
    seconds: list[float] = []
    with _ready_times(core, pods.namespace) as became:
        for number in range(a_node):
            for node in lab.nodes:
                name = f"filler-{node.name}-{number}"
                labels = {"set": "fillers", "group": str(number % 10)}
                idle = container("idle", ["sleep", "infinity"], IDLE_SHARE)
                document = pods.pod(name, node, [idle], labels=labels)
                began = time.monotonic()
                core.create_namespaced_pod(pods.namespace, document)
                seconds.append(_of(became, name) - began)
    adds = [_less(_adds(lab, node), before[node.name]) for node in lab.nodes]
    together = [
        (bound, sum(counts)) for bound, *counts in (
            (rows[0][0], *(count for _, count in rows)) for rows in zip(*adds, strict=True)
        )
    ]  # fmt: skip
    return [
        figure("pod start, p99", "s", seconds, at_most=3.0, share=0.99),
        figure("pod start, median", "s", seconds),
        {
            **figure(
                "CNI ADD in the agent, p99 at most", "s", [bucket_quantile(together, 0.99)], at_most=0.15
            ),
            "samples": int(together[-1][1]),
        },
        figure("CNI ADD in the agent, median at most", "s", [bucket_quantile(together, 0.5)]),
    ]


def policy_changes(lab: Rendered, pods: Workload, policies: int, changes: int) -> list[dict[str, Any]]:
    """From the request that changes a policy to the first probe that is treated otherwise."""
    server, near = lab.nodes[-1], lab.nodes[0]
    pods.apply(
        pods.pod("probed", server, [container("answer", python("answer.py", str(_PORT)))]),
        pods.pod("prober", near, [container("client", ["sleep", "infinity"])]),
        *(_policy_among(number) for number in range(policies)),
    )
    pods.ready("probed", "prober")
    policy = api.networking(pods.cluster)
    gate = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "gate"},
        "spec": {"podSelector": {"matchLabels": {"app": "probed"}}, "policyTypes": ["Ingress"]},
    }
    address = pods.field("probed", "status.podIP")
    words = python("probe.py", address, str(_PORT), str(60 + changes * 3))
    closing: list[float] = []
    opening: list[float] = []
    with lines(pods.argv("prober", words)) as told:
        _wait_for(told, "open", 0.0)
        for _ in range((changes + 1) // 2):
            asked = time.time()
            policy.create_namespaced_network_policy(pods.namespace, gate)
            closing.append(_wait_for(told, "closed", asked))
            asked = time.time()
            policy.delete_namespaced_network_policy("gate", pods.namespace)
            opening.append(_wait_for(told, "open", asked))
    both = [seconds * 1000 for seconds in closing + opening]
    return [
        figure("policy change to enforcement, p99", "ms", both, at_most=100.0, share=0.99),
        figure("policy change to enforcement, median", "ms", both),
        figure("policy made, median", "ms", [seconds * 1000 for seconds in closing]),
        figure("policy removed, median", "ms", [seconds * 1000 for seconds in opening]),
    ]


def _policy_among(number: int) -> dict[str, Any]:
    """A policy of the kind that a cluster is full of: one set of pods may speak to another."""
    peers = {"podSelector": {"matchLabels": {"group": str((number + 1) % 10)}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"among-{number}"},
        "spec": {
            "podSelector": {"matchLabels": {"set": "fillers", "group": str(number % 10)}},
            "ingress": [{"from": [peers], "ports": [{"port": 8000 + number, "protocol": "TCP"}]}],
        },
    }


@contextmanager
def _ready_times(core: Any, namespace: str) -> Iterator[Queue[tuple[str, float]]]:
    """A queue of (pod, when it was seen ready, on the monotonic clock)."""
    became: Queue[tuple[str, float]] = Queue()
    stream = api.watcher()
    told: set[str] = set()

    def follow() -> None:
        try:
            for event in stream.stream(core.list_namespaced_pod, namespace, timeout_seconds=1800):
                pod = event["object"]
                conditions = {item.type: item.status for item in pod.status.conditions or []}
                if conditions.get("Ready") == "True" and pod.metadata.name not in told:
                    told.add(pod.metadata.name)
                    became.put((pod.metadata.name, time.monotonic()))
        except HTTPError:
            return  # the watch was ended; a pod that is missed by it is told by `_of`

    follower = threading.Thread(target=follow, name="watch of pods", daemon=True)
    follower.start()
    try:
        yield became
    finally:
        stream.stop()


def _of(became: Queue[tuple[str, float]], name: str) -> float:
    """When the pod called `name` became ready."""
    try:
        while (entry := became.get(timeout=LONGEST))[0] != name:
            pass
    except Empty:
        die(
            f"pod {name} was not ready within {LONGEST:g} s",
            hint="`lab kubectl get pods -A` and `lab logs NODE` show what holds it up",
            code=ExitCode.NODE,
        )
    return entry[1]


@contextmanager
def lines(argv: list[str], into: Queue[str] | None = None) -> Iterator[Queue[str]]:
    """The lines that a program prints, while it runs; a queue that is given may take those of many."""
    told: Queue[str] = Queue() if into is None else into
    process = Popen(argv, stdout=PIPE, stdin=PIPE, text=True)

    def follow() -> None:
        assert process.stdout
        for line in process.stdout:
            told.put(line)

    threading.Thread(target=follow, name="prober", daemon=True).start()
    try:
        yield told
    finally:
        process.kill()
        process.wait()


def _wait_for(told: Queue[str], state: str, since: float) -> float:
    """Seconds from `since` to the probe at which the prober saw `state`; 0 where it had it before.

    Nodes that are system containers share the clock of this machine.
    """
    try:
        while True:
            when, _, word = told.get(timeout=LONGEST).strip().partition(" ")
            if word == state:
                return max(0.0, float(when) - since)
    except Empty:
        die(
            f"a change of policy was not seen ({state}) within {LONGEST:g} s",
            hint="`lab exec NODE underpass policy get` shows what is in force",
            code=ExitCode.NODE,
        )


def _adds(lab: Rendered, node: RenderedNode) -> list[tuple[float, float]]:
    """The buckets of the agent's ADDs, none where it has done none since it was started."""
    text = ssh.on_node(lab, node, _METRICS, quiet=True).stdout
    return tools.histogram(text, "underpass_cni_seconds", command="ADD", outcome="ok")


def _less(after: list[tuple[float, float]], before: list[tuple[float, float]]) -> list[tuple[float, float]]:
    known = dict(before)
    return [(bound, count - known.get(bound, 0.0)) for bound, count in after]

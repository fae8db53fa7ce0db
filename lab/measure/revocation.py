"""How soon after a change of policy the connections that it no longer allows are reset, at both ends."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from queue import Empty, Queue
from typing import Any

from lab.errors import ExitCode, die
from lab.measure import api
from lab.measure.enforcement import LONGEST, lines
from lab.measure.statistics import figure
from lab.measure.workload import Workload, container, python
from lab.render import Rendered

_PORT = 9001
_IDLE = ["sleep", "infinity"]


def resets(lab: Rendered, pods: Workload, changes: int) -> list[dict[str, Any]]:
    """Idle and busy connections, on one node and across two, are revoked `changes` times.

    By the servers' ingress and the client's egress in turn. From the request to the API server to the moment
    at which a process is told of the end, by the clock that nodes share with this machine where they are
    system containers.
    """
    near, far = lab.nodes[0], lab.nodes[-1]
    pods.apply(
        pods.pod("ends-near", near, [container("serve", _IDLE)], labels={"ends": "servers"}),
        pods.pod("ends-far", far, [container("serve", _IDLE)], labels={"ends": "servers"}),
        pods.pod("ends-client", near, [container("hold", _IDLE)], labels={"ends": "client"}),
    )
    pods.ready("ends-near", "ends-far", "ends-client")
    policy = api.networking(pods.cluster)
    servers = ("ends-near", "ends-far")
    addresses = [pods.field(name, "status.podIP") for name in servers]
    told: Queue[str] = Queue()
    seconds: list[float] = []
    how: list[str] = []
    with ExitStack() as stack:
        for name in servers:
            stack.enter_context(lines(pods.argv(name, python("ends.py", "serve", str(_PORT))), told))
        words = python("ends.py", "hold", str(_PORT), *addresses)
        stack.enter_context(lines(pods.argv("ends-client", words), told))
        gates = itertools.cycle([_gate("servers", "Ingress"), _gate("client", "Egress")])
        for gate in itertools.islice(gates, changes):
            held = _held(told)
            asked = time.time()
            policy.create_namespaced_network_policy(pods.namespace, gate)
            for word, when in _ends(told, held):
                how.append(word)
                seconds.append(when - asked)
            policy.delete_namespaced_network_policy(gate["metadata"]["name"], pods.namespace)
    times = [value * 1000 for value in seconds]
    right = [float(word == "ECONNRESET") for word in how]
    return [
        figure("policy change to reset, the last", "ms", times, at_most=1000.0, share=1.0),
        figure("policy change to reset, p99", "ms", times, at_most=1000.0, share=0.99),
        figure("policy change to reset, median", "ms", times),
        figure("revoked ends told by ECONNRESET", "share", [sum(right) / len(right)], at_least=1.0),
    ]


def _gate(subjects: str, direction: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"revoke-{direction.lower()}"},
        "spec": {"podSelector": {"matchLabels": {"ends": subjects}}, "policyTypes": [direction]},
    }


def _next(told: Queue[str]) -> list[str]:
    try:
        return told.get(timeout=LONGEST).split()
    except Empty:
        die(
            f"connections between pods neither came nor ended within {LONGEST:g} s",
            hint="`lab exec NODE underpass policy get` shows what is in force",
            code=ExitCode.NODE,
        )


def _held(told: Queue[str]) -> set[str]:
    """The ports of the connections that are held now."""
    while (words := _next(told))[0] != "held":
        pass
    return set(words[1:])


def _ends(told: Queue[str], held: set[str]) -> list[tuple[str, float]]:
    """How and when both ends of each connection ended."""
    found: list[tuple[str, float]] = []
    while len(found) < 2 * len(held):
        kind, *words = _next(told)
        if kind == "end" and words[0] in held:
            found.append((words[1], float(words[2])))
    return found

"""What many Services cost a connect() of a pod."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab import ssh
from lab.errors import ExitCode, die
from lab.measure import api
from lab.measure.shell import Shell
from lab.measure.statistics import figure
from lab.measure.workload import Workload, container, inside, python
from lab.render import Rendered

_PORT = 9000
_FEW = 10


def connects(
    lab: Rendered, pods: Workload, many: int, rounds: int, count: int, rest: int
) -> list[dict[str, Any]]:
    """Median seconds of `count` connects in each round: among few Services, among `many`, among few again.

    Services cannot come and go within a round: what the machine does beside it is told by the two series
    among few, before and after. Each series begins after `rest` seconds.
    """
    node = lab.nodes[0]
    pods.apply(
        pods.pod("answering", node, [container("answer", python("answer.py", str(_PORT)))]),
        pods.pod("connecting", node, [container("client", ["sleep", "infinity"])]),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "answering"},
            "spec": {"selector": {"app": "answering"}, "ports": [{"port": 80, "targetPort": _PORT}]},
        },
    )
    pods.ready("answering", "connecting")
    address = pods.cluster.kubectl(
        "get", "service", "answering", "-n", pods.namespace, "-o", "jsonpath={.spec.clusterIP}"
    ).stdout
    core = api.core(pods.cluster)
    crowd = f"{pods.namespace}-crowd"
    core.create_namespace({"metadata": {"name": crowd}})
    try:
        with pods.shell("connecting") as shell:
            shell.ask(f"cat > /tmp/connects.py <<'END'\n{inside('connects.py')}\nEND")
            _add(core, crowd, range(_FEW))
            _served(lab, crowd, _FEW)
            before = _rounds(shell, address, rounds, count, rest)
            _add(core, crowd, range(_FEW, many))
            _served(lab, crowd, many)
            among = _rounds(shell, address, rounds, count, rest)
            _remove(pods, crowd)
            _served(lab, crowd, 0)
            after = _rounds(shell, address, rounds, count, rest)
    finally:
        _remove(pods, crowd)
    few = statistics.median(before + after)
    return [
        figure(f"connect, {many} Services to {_FEW}", "x", [value / few for value in among], at_most=1.05),
        figure(f"connect, {_FEW} Services before", "us", before),
        figure(f"connect, {many} Services", "us", among),
        figure(f"connect, {_FEW} Services after", "us", after),
    ]


def _add(core: Any, namespace: str, numbers: range) -> None:
    def one(number: int) -> None:
        # No selector: a Service without endpoints is as much an entry of the maps as any other.
        core.create_namespaced_service(
            namespace,
            {"metadata": {"name": f"crowd-{number}"}, "spec": {"ports": [{"port": 80}]}},
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, numbers))


def _remove(pods: Workload, namespace: str) -> None:
    """Have the cluster remove the crowd: thousands take it longer than one request to the API server may."""
    pods.cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")


def _served(lab: Rendered, namespace: str, count: int, seconds: float = 300) -> None:
    """Wait until the node's agent serves as many of the crowd as there are."""
    deadline, seen = time.monotonic() + seconds, -1
    while time.monotonic() < deadline:
        answer = ssh.on_node(lab, lab.nodes[0], ["underpass", "services", "-o", "json"], quiet=True).stdout
        seen = sum(entry["owner"].startswith(f"{namespace}/") for entry in json.loads(answer))
        if seen == count:
            return
        time.sleep(0.5)
    die(
        f"{lab.nodes[0].name} serves {seen} of {count} Services after {seconds:g} s",
        hint="`lab logs` shows what its agent says",
        code=ExitCode.NODE,
    )


def _rounds(shell: Shell, address: str, rounds: int, count: int, rest: int) -> list[float]:
    """The median connect of each round, in us."""
    medians = []
    time.sleep(rest)  # what made and wrote the Services is still at work
    for _ in range(rounds):
        seconds = json.loads(shell.ask(f"python3 /tmp/connects.py {address} 80 {count}"))
        medians.append(statistics.median(seconds) * 1e6)
    return medians

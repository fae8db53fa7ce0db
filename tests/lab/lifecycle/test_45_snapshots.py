"""A saved lab comes back whole: what was there then is there, what came later is not, and all agree."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from lab import ssh
from lab.cluster import Cluster
from lab.errors import ExitCode
from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import toolbox
from tests.lab.pods import Pods
from tests.lab.waiting import until

NAMESPACE = "snapshots"
CLOSED = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {set: closed}}, policyTypes: [Ingress]}
"""


@pytest.fixture
def saved(lab: Rendered, command: LabCommand, cluster: Cluster) -> Iterator[Pods]:
    """Two open pods and a closed one, saved as `prepared`; then the policy and a pod are removed."""
    pods = Pods(cluster, NAMESPACE, toolbox())
    pods.create()
    first, last = lab.nodes[0].name, lab.nodes[-1].name
    pods.run("asks", first, labels={"set": "open"})
    pods.run("open", last, labels={"set": "open"})
    pods.run("shut", last, labels={"set": "closed"})
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=CLOSED)
    pods.ready()
    command("snapshot", "delete", "prepared")
    command.check("snapshot", "save", "prepared")
    cluster.kubectl("delete", "-n", NAMESPACE, "networkpolicy", "closed")
    cluster.kubectl("delete", "-n", NAMESPACE, "pod", "open", "--grace-period=1", timeout=120)
    cluster.kubectl("create", "-n", NAMESPACE, "configmap", "later")
    try:
        yield pods
    finally:
        command("snapshot", "delete", "prepared")
        pods.remove()


def test_a_restored_lab_is_as_it_was_saved(
    lab: Rendered, command: LabCommand, cluster: Cluster, saved: Pods
) -> None:
    assert [row["name"] for row in command.json("snapshot", "list")] == ["prepared"]
    outcome = command.json("snapshot", "restore", "prepared")
    assert [node["ready"] for node in outcome["nodes"]] == [True] * len(lab.nodes)

    # The clock, before what depends on it.
    for node in lab.nodes:
        there = float(ssh.on_node(lab, node, ["date", "+%s.%N"]).stdout)
        assert abs(there - time.time()) < 2

    # etcd: what was saved, nothing later.
    names = cluster.kubectl("get", "configmaps", "-n", NAMESPACE, "-o", "name").stdout.split()
    assert "configmap/later" not in names
    assert _pods(cluster) == {"asks", "open", "shut"}

    # Leases are renewed by kubelets of now; certificates open the API, and exec by way of it.
    def renewed() -> bool:
        leases = json.loads(cluster.kubectl("get", "leases", "-n", "kube-node-lease", "-o", "json").stdout)[
            "items"
        ]
        ages = [datetime.now(UTC) - datetime.fromisoformat(lease["spec"]["renewTime"]) for lease in leases]
        return len(ages) == len(lab.nodes) and max(ages).total_seconds() < 30

    until(renewed, "every node's lease is renewed")

    # Pods run again, and policy is what it was.
    saved.ready()
    until(lambda: "open" in saved.talk("asks", saved.address("open")), "the open pod answers")
    assert saved.talk("asks", saved.address("shut")) == "ETIMEDOUT"
    assert command.json("up")["changed"] == 0


def _pods(cluster: Cluster) -> set[str]:
    items = json.loads(cluster.kubectl("get", "pods", "-n", NAMESPACE, "-o", "json").stdout)["items"]
    return {item["metadata"]["name"] for item in items}


def test_names_that_cannot_be_are_refused_and_the_lab_goes_on(
    lab: Rendered, command: LabCommand, cluster: Cluster
) -> None:
    assert command("snapshot", "restore", "never").returncode == ExitCode.NOT_THERE
    assert command("snapshot", "delete", "never").returncode == ExitCode.NOT_THERE
    assert "not a name" in command("snapshot", "save", "No/Name").stderr
    assert cluster.health() == "ok"

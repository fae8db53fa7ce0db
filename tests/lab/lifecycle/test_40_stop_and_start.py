"""Stop and start, in order and by a power cut: the same cluster comes back, data and pods intact."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.providers import provider
from lab.providers.base import NodeState
from lab.render import Rendered
from tests.lab import power
from tests.lab.command import LabCommand
from tests.lab.conftest import connect, image_called
from tests.lab.waiting import until
from tests.sizes import SIZES

POD = """\
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: stays
spec:
  selector: {matchLabels: {app: stays}}
  template:
    metadata: {labels: {app: stays}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
        - name: stays
          image: PAUSE
          imagePullPolicy: Never
        # The first process of a container gets no SIGTERM that it has no handler for.
        - name: deaf
          image: TOOLBOX
          imagePullPolicy: Never
          command: [python3, -c, "import threading; threading.Event().wait()"]
"""


@pytest.fixture
def something_to_keep(lab: Rendered, cluster: Cluster) -> str:
    """A ConfigMap and a pod on each node; returns the mark that the ConfigMap holds."""
    manifest = POD.replace("PAUSE", image_called("pause")).replace("TOOLBOX", image_called("toolbox"))
    cluster.kubectl("apply", "-f", "-", stdin=manifest)
    mark = os.urandom(8).hex()
    cluster.kubectl("delete", "configmap", "kept", "--ignore-not-found")
    cluster.kubectl("create", "configmap", "kept", f"--from-literal=mark={mark}")
    until(lambda: _running(cluster) == len(lab.nodes), "a pod runs on each node", 90)
    return mark


def _running(cluster: Cluster) -> int:
    pods = json.loads(cluster.kubectl("get", "pods", "-l", "app=stays", "-o", "json").stdout)["items"]
    return sum(
        all(status["ready"] for status in pod["status"].get("containerStatuses", [{"ready": False}]))
        for pod in pods
    )


def _restarts(cluster: Cluster) -> dict[str, int]:
    pods = json.loads(cluster.kubectl("get", "pods", "-l", "app=stays", "-o", "json").stdout)["items"]
    return {
        pod["metadata"]["uid"]: min(each["restartCount"] for each in pod["status"]["containerStatuses"])
        for pod in pods
    }


def _came_back(lab: Rendered, cluster: Cluster, mark: str, before: dict[str, int]) -> None:
    kept = cluster.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.mark}").stdout
    assert kept == mark

    def same_pods_restarted() -> bool:
        after = _restarts(cluster)
        return set(after) == set(before) and all(after[uid] > before[uid] for uid in before)

    until(same_pods_restarted, "the same pods run again on each node", 120)
    until(lambda: _running(cluster) == len(lab.nodes), "all of them ready", 60)


@pytest.mark.parametrize("round_", range(SIZES.stop_starts))
def test_a_stopped_lab_comes_back_as_it_was(
    lab: Rendered,
    command: LabCommand,
    cluster: Cluster,
    something_to_keep: str,
    round_: int,
    tmp_path: Path,
) -> None:
    before = _restarts(cluster)
    stopped = command.check("stop", "--progress=plain")
    assert "power is cut" not in stopped.stderr, "a pod that does not listen held up the shutdown"
    assert {provider(lab).status(node) for node in lab.nodes} == {NodeState.STOPPED}
    assert [node["state"] for node in command.json("status")["nodes"]] == ["stopped"] * len(lab.nodes)
    assert command.json("stop")["changed"] == 0
    assert _asked(command, tmp_path) == {"cluster/readyz.txt"}, "what cannot answer was waited for"
    command.check("start")
    _came_back(lab, cluster, something_to_keep, before)
    for node in lab.nodes:
        told = connect(lab, node).check_output("journalctl --boot=-1 --unit=underpass-pods.service")
        assert "did not end within" in told, "pods were not ended in order before the power went"
    assert command.json("up")["changed"] == 0


def _asked(command: LabCommand, folder: Path) -> set[str]:
    """What a report holds of the cluster and its mesh."""
    with tarfile.open(command.json("report", "--into", str(folder))["archive"]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    return {name for name in names if name.startswith(("cluster/", "mesh/"))}


@pytest.mark.parametrize("round_", range(SIZES.power_losses))
def test_a_lab_comes_back_from_a_power_cut(
    lab: Rendered, command: LabCommand, cluster: Cluster, something_to_keep: str, round_: int
) -> None:
    before = _restarts(cluster)
    power.cut(lab)
    command.check("start")
    _came_back(lab, cluster, something_to_keep, before)
    assert command.json("up")["changed"] == 0

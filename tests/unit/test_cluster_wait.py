"""When a cluster counts as healthy: by what is so now, not by what the API server has of before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.cluster import Cluster, running_pods, serves
from lab.errors import LabError
from lab.labfile import LabFile
from lab.render import Rendered, render
from lab.run import Completed
from lab.steps import Steps

LAB = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "waits"}
MESH = render(LabFile.model_validate({**LAB, "istio": {"enabled": True}}))
PLAIN = render(LabFile.model_validate({**LAB, "istio": {"enabled": False}}))

DNS = {
    "metadata": {"name": "coredns", "namespace": "kube-system"},
    "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "dns"}}},
    "status": {"readyReplicas": 1},
}
REFUSED = (
    "Error from server (InternalError): Internal error occurred: failed calling webhook "
    '"validation.istio.io": context deadline exceeded'
)
DENIED = 'Error from server: admission webhook "ours.example" denied the request'


def a_pod(
    uid: str = "1", ready: str = "True", app: str = "dns", namespace: str = "kube-system", **more: Any
) -> dict[str, Any]:
    conditions = [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}]
    labels = {"app": app, "hash": "x"}
    return {
        "metadata": {"uid": uid, "namespace": namespace, "labels": labels, **more},
        "status": {"conditions": conditions},
    }


def living(*uids: str) -> dict[str, Any]:
    return {"items": [{"metadata": {"uid": uid}} for uid in uids]}


@pytest.mark.parametrize(
    ("pod", "live", "runs"),
    [
        (a_pod(), living("1"), True),
        (a_pod(), living("2"), False),  # ready by the word of before a boot, which containerd never started
        (a_pod(), {"items": None}, False),
        (a_pod(ready="False"), living("1"), False),
        (a_pod(deletionTimestamp="2026-01-01T00:00:00Z"), living("1"), False),
        ({**a_pod(), "status": {}}, living("1"), False),
    ],
)
def test_a_pod_runs_when_its_kubelet_and_containerd_say_so(
    pod: dict[str, Any], live: dict[str, Any], runs: bool
) -> None:
    assert running_pods({"items": [pod]}, live) == ([pod] if runs else [])


@pytest.mark.parametrize(
    ("counted", "pods", "well"),
    [
        (1, [a_pod()], True),
        (0, [a_pod()], False),
        (1, [], False),
        (1, [a_pod(app="web")], False),
        (1, [a_pod(namespace="shop")], False),
    ],
)
def test_a_deployment_serves_with_pods_of_its_own_that_run(
    counted: int, pods: list[dict[str, Any]], well: bool
) -> None:
    assert serves({**DNS, "status": {"readyReplicas": counted}}, pods) is well


class Answers(Cluster):
    """A healthy cluster but for what its webhook, and the first of its answers, say."""

    def __init__(self, lab: Rendered, webhook: str = "", faults: int = 0) -> None:
        self.lab, self.slowness = lab, 1.0
        self.webhook, self.faults, self.asked = webhook, faults, 0

    def health(self) -> str:
        return "ok"

    def kubectl(self, *arguments: str, **_: Any) -> Completed:
        if self.faults:
            self.faults -= 1
            raise LabError("the API server does not answer")
        if arguments[0] == "create":
            self.asked += 1
            return Completed((), 1 if self.webhook else 0, "", self.webhook)
        return Completed((), 0, self._answer(arguments[1]), "")

    def _answer(self, what: str) -> str:
        if what.endswith("/healthz"):
            return "ok"
        if what.endswith("pods"):
            return json.dumps({"items": [a_pod()]})
        if what.endswith("runningpods/"):
            return json.dumps(living("1"))
        return json.dumps(
            {"items": [a_node(node.name) for node in self.lab.nodes] if what == "nodes" else [DNS]}
        )


def a_node(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}},
    }


def waited(cluster: Cluster) -> int:
    with Steps().step("cluster", "Wait for the cluster") as step:
        return len(cluster.wait(step, 0.5))


def test_a_lab_with_istio_is_healthy_when_its_webhook_answers() -> None:
    cluster = Answers(MESH)
    assert waited(cluster) == len(MESH.nodes)
    assert cluster.asked == 1


def test_a_lab_whose_webhook_does_not_answer_is_not_healthy() -> None:
    with pytest.raises(LabError, match=r"Istio's webhook does not answer: .*validation\.istio\.io"):
        waited(Answers(MESH, REFUSED))


def test_a_webhook_that_denies_has_answered() -> None:
    assert waited(Answers(MESH, DENIED)) == len(MESH.nodes)


def test_a_lab_without_istio_asks_no_webhook() -> None:
    cluster = Answers(PLAIN, REFUSED)
    assert waited(cluster) == len(PLAIN.nodes)
    assert cluster.asked == 0


def test_one_answer_that_fails_does_not_end_the_waiting() -> None:
    assert waited(Answers(PLAIN, faults=1)) == len(PLAIN.nodes)
    with pytest.raises(LabError, match=r"not healthy after 0\.5 s: the API server does not answer"):
        waited(Answers(PLAIN, faults=10_000))

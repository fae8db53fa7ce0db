"""Pods of a measurement: in a namespace of their own, asked through shells, gone at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lab import builds, images, ssh
from lab.builds.containers import measure as image
from lab.cluster import Cluster
from lab.errors import ExitCode, LabError, die
from lab.measure.shell import Shell
from lab.render import Rendered, RenderedNode
from lab.steps import Steps

INSIDE = Path(__file__).parent / "inside"

#: Enough that a pod is not starved by what else runs. A node takes no more of them than it has CPUs for.
SHARE = "100m"
#: Of pods that are only there: dozens of them fit.
IDLE_SHARE = "1m"


def inside(name: str) -> str:
    """The text of a program that runs in pods."""
    return (INSIDE / name).read_text(encoding="utf-8")


def python(name: str, *arguments: str) -> list[str]:
    """The command line that runs `inside/NAME` in a pod."""
    return ["python3", "-u", "-c", inside(name), *arguments]


def container(name: str, command: Sequence[str], cpu: str = SHARE) -> dict[str, Any]:
    """A container of the measurement's image. `cpu`: what it asks for, as Kubernetes writes it."""
    return {
        "name": name,
        "image": image.reference(),
        "imagePullPolicy": "Never",
        "command": list(command),
        "resources": {"requests": {"cpu": cpu}},
    }


def prepare(lab: Rendered, steps: Steps) -> Cluster:
    """Build the image if need be and put it on the nodes that lack it; the lab's Kubernetes."""
    artifacts = builds.build_all(steps, {"measure-image", "kubernetes"})
    cluster = Cluster(lab, artifacts["kubernetes"].path / "bin")
    if (health := cluster.health()) != "ok":
        die(
            f"lab {lab.id} cannot be measured: API server: {health}",
            hint="`lab up` mends it",
            code=ExitCode.NODE,
        )
    wanted = image.reference()
    listed = [
        ssh.on_node(lab, node, ["ctr", "-n", "k8s.io", "images", "ls", "-q"]).stdout.split()
        for node in lab.nodes
    ]
    if not all(wanted in names for names in listed):
        with steps.step("image", "Put the measurement's image on the nodes"):
            images.load(lab, artifacts["measure-image"].path / "measure.tar")
    return cluster


def cluster_of(lab: Rendered) -> Cluster:
    """The lab's Kubernetes, where nothing needs to be built."""
    artifacts = builds.locate()
    if "kubernetes" not in artifacts:
        die(
            "the artifacts of Kubernetes are not in the store",
            hint="`lab build` builds them",
            code=ExitCode.ARTIFACT,
        )
    return Cluster(lab, artifacts["kubernetes"].path / "bin")


class Workload:
    """The pods of one namespace."""

    def __init__(self, lab: Rendered, cluster: Cluster, namespace: str) -> None:
        self.lab, self.cluster, self.namespace = lab, cluster, namespace

    def create(self) -> None:
        """Make the namespace; a leftover of the same name is removed first."""
        self.remove()
        self.cluster.kubectl("create", "namespace", self.namespace)
        made = ("wait", "-n", self.namespace, "--for=create", "serviceaccount/default")
        self.cluster.kubectl_wait(*made, seconds=30)

    def remove(self, *, wait: bool = True) -> None:
        gone = ("delete", "namespace", self.namespace, "--ignore-not-found")
        if wait:
            self.cluster.kubectl_wait(*gone, seconds=300)
        else:
            self.cluster.kubectl(*gone, "--wait=false")

    def apply(self, *documents: dict[str, Any]) -> None:
        """Create or change objects in the namespace."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.cluster.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(bundle))

    def pod(
        self,
        name: str,
        node: RenderedNode,
        containers: Sequence[dict[str, Any]],
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **spec: Any,
    ) -> dict[str, Any]:
        """A pod's document."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {"app": name, **(labels or {})},
                "annotations": annotations or {},
            },
            "spec": {
                "nodeName": node.name,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "containers": list(containers),
                **spec,
            },
        }

    def ready(self, *names: str, seconds: float = 90) -> None:
        """Wait until the pods are ready."""
        pods = [f"pod/{name}" for name in names]
        ready = ("wait", "-n", self.namespace, "--for=condition=Ready", *pods)
        self.cluster.kubectl_wait(*ready, seconds=seconds)

    def field(self, name: str, path: str) -> str:
        """A field of a pod, as jsonpath: `status.podIP`."""
        return self.cluster.kubectl(
            "get", "pod", name, "-n", self.namespace, "-o", f"jsonpath={{.{path}}}"
        ).stdout

    def argv(self, name: str, command: Sequence[str], container: str = "") -> list[str]:
        """The command line that runs `command` in a pod with our stdin."""
        chosen = ["-c", container] if container else []
        return self.cluster.argv(["exec", "-i", "-n", self.namespace, name, *chosen, "--", *command])

    def shell(self, name: str, container: str = "") -> Shell:
        """A shell in the pod."""
        return Shell(self.argv(name, ["bash"], container))


@contextmanager
def workload(lab: Rendered, cluster: Cluster, namespace: str) -> Iterator[Workload]:
    """A namespace for pods; removed at the end, also after a failure."""
    made = Workload(lab, cluster, namespace)
    made.create()
    try:
        yield made
    except BaseException:
        with suppress(LabError):  # what ended the measurement is told; the next one clears away what is left
            made.remove(wait=False)
        raise
    made.remove(wait=False)


def node_shell(lab: Rendered, node: RenderedNode) -> Shell:
    """A root shell on a node."""
    return Shell(ssh.argv(lab, node, ["bash"]))

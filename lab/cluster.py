"""Questions to a lab's Kubernetes, asked through its own kubectl and kubeconfig."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, LabError, die
from lab.providers import provider
from lab.render import Rendered
from lab.retry import retry_context
from lab.run import Completed, run
from lab.steps import Step

OWN_NAMESPACES = ("kube-system", "istio-system")

#: What is asked of Istio's webhook, and never made.
_ASKED_OF_ISTIO = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: underpass-asks, namespace: default}
spec: {mtls: {mode: STRICT}}
"""
#: How the API server begins where a webhook did not answer; any other word is an answer.
_NO_WEBHOOK = "failed calling webhook"

#: A line of the API server's own checks that does not hold: `[-]name failed: reason`.
_UNREADY = re.compile(r"\[-\](\S+) failed")


class NotYet(Exception):
    """What is waited for is not there yet; the text says what is missing."""


@dataclass(frozen=True)
class KubeNode:
    """A node as Kubernetes sees it. `reason` says why it is not ready, empty when it is."""

    name: str
    ready: bool
    reason: str
    version: str
    pod_range: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Cluster:
    """The Kubernetes cluster of a lab. `binaries` is the folder with kubectl.

    Every limit given in seconds is for processors of the host's own; where the nodes are slower
    (`slowness`), it grows by that factor.
    """

    def __init__(self, lab: Rendered, binaries: Path) -> None:
        self.lab = lab
        self.kubeconfig = lab.folder / "kubeconfig"
        self.slowness = provider(lab).slowness
        self._kubectl = binaries / "kubectl"

    def argv(self, arguments: Sequence[str]) -> list[str]:
        """The command line of kubectl with the lab's kubeconfig and nobody else's settings."""
        return [str(self._kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]

    def kubectl(
        self, *arguments: str, ok: Sequence[int] = (0,), stdin: str | None = None, timeout: float = 60
    ) -> Completed:
        """Run kubectl and return what it printed."""
        return run(
            self.argv(arguments),
            ok=ok,
            stdin=stdin,
            timeout=timeout * self.slowness,
            hint="`lab status` shows whether the control plane is up",
            code=ExitCode.NODE,
        )

    def kubectl_wait(self, *arguments: str, seconds: float) -> None:
        """Run a command of kubectl's that waits (`wait`, `rollout status`, `delete`), `seconds` at most."""
        self.kubectl(*arguments, f"--timeout={seconds * self.slowness:g}s", timeout=seconds + 10)

    def _request_limit(self) -> str:
        """How long kubectl waits for one answer, as its option."""
        return f"--request-timeout={5 * self.slowness:g}s"

    def hand_over(self, arguments: Sequence[str], program: Path | None = None) -> int:
        """Run kubectl, or another client, with our own stdin, stdout and stderr; returns its status."""
        if not self.kubeconfig.exists():
            die(
                f"lab {self.lab.id} has no kubeconfig yet",
                hint="`lab up` brings the lab up",
                code=ExitCode.NOT_THERE,
            )
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return subprocess.run([program or self._kubectl, *arguments], env=env, check=False).returncode

    def health(self) -> str:
        """`ok`, or what the API server says that is not."""
        if not self.kubeconfig.exists():
            return "no kubeconfig"
        done = self.kubectl("get", "--raw=/readyz?verbose", self._request_limit(), ok=range(256), timeout=20)
        if done.status == 0:
            return "ok"
        bad = _UNREADY.findall(done.stdout + done.stderr)  # kubectl puts the list into its error, escaped
        if bad:
            return f"not ready yet: {', '.join(bad)}"
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]

    def nodes(self) -> list[KubeNode]:
        """The registered nodes."""
        done = self.kubectl("get", "nodes", "-o", "json", self._request_limit(), timeout=20)
        return [_node(item) for item in json.loads(done.stdout)["items"]]

    def wait(self, step: Step, seconds: float = 120) -> list[KubeNode]:
        """Wait until the API is healthy, every node is Ready and answers, and the cluster's own pods serve.

        A question that fails is asked again: an API server that has just come up may pause.
        """
        names = {node.name for node in self.lab.nodes}
        seconds *= self.slowness
        try:
            for attempt in retry_context(
                on=NotYet, attempts=None, timeout=seconds, wait_initial=0.3, wait_max=2, wait_jitter=0.2
            ):
                with attempt:
                    try:
                        return self._all_there(step, names)
                    except LabError as fault:
                        missing = ": ".join([fault.message, *fault.details[-1:]])
                        step.say(missing)
                        raise NotYet(missing) from None
        except NotYet as last:
            raise LabError(
                f"the cluster of lab {self.lab.id} is not healthy after {seconds:g} s: {last}",
                hint="`lab logs NODE` shows a node's journal, `lab report` collects everything",
                code=ExitCode.PROVISION,
            ) from None
        raise AssertionError("unreachable: the retry loop returns or raises")

    def _kubelet_answers(self, name: str) -> bool:
        """Whether the node's kubelet answers now; its status at the API server may be of before."""
        path = f"/api/v1/nodes/{name}/proxy/healthz"
        done = self.kubectl("get", f"--raw={path}", self._request_limit(), ok=range(256), timeout=20)
        return done.status == 0 and done.stdout.strip() == "ok"

    def _running_pods(self, node: str) -> list[dict[str, Any]]:
        """The pods that run and are ready by the word of the node's kubelet and containerd."""
        pods, live = (
            json.loads(self.kubectl("get", f"--raw=/api/v1/nodes/{node}/proxy/{kind}", timeout=20).stdout)
            for kind in ("pods", "runningpods/")
        )
        return running_pods(pods, live)

    def _waiting_pods(self, nodes: Sequence[KubeNode]) -> str:
        """The cluster's own Deployments (DNS, Istio) that do not serve now; empty when all do."""
        done = self.kubectl("get", "deployments", "--all-namespaces", "-o", "json", timeout=20)
        own = [
            item
            for item in json.loads(done.stdout)["items"]
            if item["metadata"]["namespace"] in OWN_NAMESPACES
        ]
        pods = [pod for node in nodes for pod in self._running_pods(node.name)]
        return ", ".join(item["metadata"]["name"] for item in own if not serves(item, pods))

    def _silent_webhook(self) -> str:
        """What the API server says where Istio's webhook, which objects of Istio's need, does not answer."""
        if self.lab.istio_version is None:
            return ""
        arguments = ("create", "--dry-run=server", "--filename=-")
        done = self.kubectl(*arguments, ok=range(256), stdin=_ASKED_OF_ISTIO, timeout=20)
        return done.stderr.strip() if _NO_WEBHOOK in done.stderr else ""

    def _all_there(self, step: Step, names: set[str]) -> list[KubeNode]:
        health = self.health()
        if health != "ok":
            step.say(f"API server: {health}")
            raise NotYet(f"API server: {health}")
        nodes = self.nodes()
        closed = [f"{node.name} is not Ready ({node.reason})" for node in nodes if not node.ready]
        absent = names - {node.name for node in nodes}
        silent = {node.name for node in nodes if not self._kubelet_answers(node.name)}
        if absent or silent:
            word = ", ".join(sorted(absent | silent))
            step.say(f"waiting for {word} to report to the API server")
            raise NotYet(f"{word} did not report to the API server")
        if closed:
            step.say("; ".join(closed))
            raise NotYet("; ".join(closed))
        waiting = self._waiting_pods(nodes)
        if waiting:
            step.say(f"waiting for {waiting} to run")
            raise NotYet(f"{waiting} does not run")
        silent_webhook = self._silent_webhook()
        if silent_webhook:
            step.say(f"waiting for Istio's webhook: {silent_webhook}")
            raise NotYet(f"Istio's webhook does not answer: {silent_webhook}")
        return nodes


def running_pods(pods: dict[str, Any], live: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of a node that run now and are ready.

    After a boot the API server still has what was before it, and a kubelet begins with that. What
    containerd runs is of now; and a kubelet says of a pod that it is not ready before it starts it again.

    pods: the kubelet's list. live: its list of what containerd runs.
    """
    there = {pod["metadata"]["uid"] for pod in live.get("items") or []}
    return [
        pod
        for pod in pods.get("items") or []
        if pod["metadata"]["uid"] in there
        and "deletionTimestamp" not in pod["metadata"]
        and any(
            (condition["type"], condition["status"]) == ("Ready", "True")
            for condition in pod["status"].get("conditions", [])
        )
    ]


def serves(deployment: dict[str, Any], pods: Sequence[dict[str, Any]]) -> bool:
    """Whether a Deployment has its replicas: as Kubernetes counts them, and among `pods`, which run."""
    wanted: int = deployment["spec"]["replicas"]
    namespace = deployment["metadata"]["namespace"]
    labels = deployment["spec"]["selector"].get("matchLabels", {}).items()
    running = [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == namespace and labels <= pod["metadata"].get("labels", {}).items()
    ]
    return int(deployment["status"].get("readyReplicas", 0)) >= wanted <= len(running)


def _node(item: dict[str, Any]) -> KubeNode:
    conditions = {condition["type"]: condition for condition in item["status"].get("conditions", [])}
    ready = conditions.get("Ready", {})
    return KubeNode(
        name=item["metadata"]["name"],
        ready=ready.get("status") == "True",
        reason="" if ready.get("status") == "True" else str(ready.get("reason", "NotReported")),
        version=item["status"]["nodeInfo"]["kubeletVersion"],
        pod_range=item["spec"].get("podCIDR"),
    )

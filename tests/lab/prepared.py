"""A cluster that is saved and brought back: prepared before, changed after, and consistent again."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from lab import ssh
from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.conftest import toolbox
from tests.lab.mesh import strict
from tests.lab.pods import Pods
from tests.lab.waiting import until

NAMESPACE = "snapshots"
CLOSED = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {set: closed}}, policyTypes: [Ingress]}
"""


class Prepared:
    """Two open pods and a closed one, in a namespace of their own."""

    def __init__(self, lab: Rendered, cluster: Cluster) -> None:
        self._lab = lab
        self._cluster = cluster
        self._pods = Pods(cluster, NAMESPACE, toolbox())

    def make(self) -> None:
        self._pods.create()
        first, last = self._lab.nodes[0].name, self._lab.nodes[-1].name
        self._pods.run("asks", first, labels={"set": "open"})
        self._pods.run("open", last, labels={"set": "open"})
        self._pods.run("shut", last, labels={"set": "closed"})
        self._cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=CLOSED)
        self._pods.ready()

    def change(self) -> None:
        """The policy and a pod go, an object comes: what a cluster that is brought back must not know of."""
        kubectl = self._cluster.kubectl
        kubectl("delete", "-n", NAMESPACE, "networkpolicy", "closed")
        kubectl("delete", "-n", NAMESPACE, "pod", "open", "--grace-period=1", timeout=120)
        kubectl("create", "-n", NAMESPACE, "configmap", "later")

    def remove(self) -> None:
        self._pods.remove()

    def holds(self) -> None:
        """Clock, etcd, Istio, leases, certificates, pods and policy agree, and are as they were prepared."""
        # Istio's webhook, at once: it comes back last, and the cluster was said to be healthy.
        if self._lab.istio_version:
            asked = json.dumps(strict())
            self._cluster.kubectl("create", "-n", NAMESPACE, "--dry-run=server", "-f", "-", stdin=asked)

        # The clock, before what depends on it; to tell it takes a while on a slow machine.
        for node in self._lab.nodes:
            there = float(ssh.on_node(self._lab, node, ["date", "+%s.%N"]).stdout)
            assert abs(there - time.time()) < 2 * max(1.0, self._cluster.slowness / 4)

        # etcd: what was saved, nothing later; and it takes what is new.
        assert "configmap/later" not in self._names("configmaps")
        assert self._names("pods") == {"pod/asks", "pod/open", "pod/shut"}
        self._cluster.kubectl("create", "-n", NAMESPACE, "configmap", "again")
        self.serves()

    def serves(self) -> None:
        """Leases, certificates, pods and policy agree."""
        # Leases are renewed by kubelets of now; certificates open the API, and exec by way of it.
        until(self._renewed, "every node's lease is renewed")

        # Pods run again, and policy is what it was.
        self._pods.ready()
        open_, shut = self._pods.address("open"), self._pods.address("shut")
        until(lambda: "open" in self._pods.talk("asks", open_), "the open pod answers")
        assert self._pods.talk("asks", shut) == "ETIMEDOUT"

    def _names(self, kind: str) -> set[str]:
        names = self._cluster.kubectl("get", kind, "-n", NAMESPACE, "-o", "name").stdout.split()
        return {name for name in names if name != "configmap/kube-root-ca.crt"}

    def _renewed(self) -> bool:
        told = self._cluster.kubectl("get", "leases", "-n", "kube-node-lease", "-o", "json").stdout
        ages = [
            datetime.now(UTC) - datetime.fromisoformat(lease["spec"]["renewTime"])
            for lease in json.loads(told)["items"]
        ]
        return len(ages) == len(self._lab.nodes) and max(ages).total_seconds() < 30

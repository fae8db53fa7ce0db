"""Pods of the suite with sidecars: a namespace of its own, injected and STRICT, and what is asked of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import builds
from lab.cluster import Cluster
from lab.run import Completed, run
from tests.lab.pods import Pods
from tests.lab.waiting import until

HTTP_PORT = 8080
#: What curl prints for `ask`: the answer's status, 000 where there was none.
STATUS = ("-s", "-o", "/dev/null", "-w", "%{http_code}")


@dataclass
class Mesh(Pods):
    """The pods of one namespace with sidecars; `httpbin` is the image of the server that answers HTTP."""

    httpbin: str = ""

    def create(self) -> None:
        super().create()
        self.cluster.kubectl("label", "namespace", self.namespace, "istio-injection=enabled")
        self.apply(strict())

    def remove(self) -> None:
        """As for other pods, at once: who is served by them is gone as well."""
        everything = ("delete", "deployments,pods", "--all", "-n", self.namespace, "--grace-period=1")
        self.cluster.kubectl(*everything, ok=range(256))
        super().remove()

    def serve(
        self,
        name: str,
        node: str,
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        account: str = "",
        **spec: Any,
    ) -> None:
        """Start an HTTP server on `node`; `name` is its Service too, port 80. `spec` adds to the pod's."""
        container = {
            "name": "httpbin",
            "image": self.httpbin,
            "imagePullPolicy": "Never",
            "env": [{"name": "USE_REAL_HOSTNAME", "value": "true"}],
            "ports": [{"containerPort": HTTP_PORT}],
            "readinessProbe": self.probe(),
        }
        if account:
            self.apply(
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}},
            )
            spec["serviceAccountName"] = account
        self.run(name, node, labels=labels, annotations=annotations, containers=[container], **spec)
        self.apply(service(name, {"app": name}))

    def probe(self, path: str = "/status/200") -> dict[str, Any]:
        """A readiness probe each second; less often on slow nodes, which twenty of them would keep busy."""
        period = max(1, round(self.cluster.slowness))
        return {"httpGet": {"path": path, "port": HTTP_PORT}, "periodSeconds": period}

    def ask(self, client: str, url: str, *options: str, limit: float = 5) -> Completed:
        """Run curl in the client pod, through its sidecar if it has one; `limit` is as for `talk`."""
        limit *= min(self.cluster.slowness, 3)
        return self.exec(client, ["curl", "-sS", "--max-time", str(limit), *options, url])

    def status(self, client: str, url: str, *options: str, limit: float = 5) -> str:
        """The HTTP status that the client pod gets, `000` for none."""
        return self.ask(client, url, *STATUS, *options, limit=limit).stdout.strip()

    def becomes(self, client: str, url: str, status: str, *options: str, seconds: float = 30) -> None:
        """Wait until the client pod gets `status`: configuration takes a moment to reach the sidecars."""
        seen = ""

        def asked() -> bool:
            nonlocal seen
            seen = self.status(client, url, *options, limit=3)
            return seen == status

        try:
            until(asked, f"{client} gets {status} from {url}", seconds)
        except AssertionError as fault:
            raise AssertionError(f"{fault}; the last status: {seen}") from None

    def certificate(self, name: str) -> dict[str, Any]:
        """The workload certificate that the pod's proxy uses, as Envoy describes it."""
        listed = json.loads(self.proxy(name, "GET", "certs"))
        chains = [one for entry in listed["certificates"] for one in entry["cert_chain"]]
        found = [chain for chain in chains if chain.get("subject_alt_names")]
        assert found, f"{name} has no certificate yet"
        certificate: dict[str, Any] = found[0]
        return certificate

    def proxy(self, name: str, *request: str) -> str:
        """What the pod's Envoy answers on its administration port."""
        return self.cluster.kubectl(
            "exec", "-n", self.namespace, name, "-c", "istio-proxy", "--", "pilot-agent", "request", *request
        ).stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object of the namespace."""
        done = self.cluster.kubectl("get", kind, name, "-n", self.namespace, "-o", "json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def clear(self, *kinds: str) -> None:
        """Delete all objects of `kinds` in the namespace."""
        for kind in kinds:
            self.cluster.kubectl("delete", kind, "--all", "-n", self.namespace)


def strict(mode: str = "STRICT", name: str = "default", app: str = "") -> dict[str, Any]:
    """A PeerAuthentication for the namespace, or for the pods of one app."""
    selector = {"selector": {"matchLabels": {"app": app}}} if app else {}
    return policy("PeerAuthentication", name, **selector, mtls={"mode": mode})


def policy(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of Istio's security API."""
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def route(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of Istio's networking API."""
    return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def service(name: str, selector: dict[str, str], **spec: Any) -> dict[str, Any]:
    """A Service for HTTP servers: port 80 to theirs."""
    ports = [{"name": "http", "port": 80, "targetPort": HTTP_PORT}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": ports, **spec},
    }


def image(artifact: str, name: str) -> str:
    """The full name of the image `name` of an artifact."""
    index = json.loads((builds.locate()[artifact].path / "index.json").read_text())
    return str(index[f"{name}.tar"])


def sample(name: str) -> Path:
    """One of Istio's own sample files, as `curl/curl.yaml`."""
    return builds.locate()["samples"].path / "share" / "samples" / name


def istioctl(cluster: Cluster, *arguments: str) -> Completed:
    """Run the lab's istioctl; whatever its status."""
    program = builds.locate()["istio"].path / "bin" / "istioctl"
    return run([str(program), "--kubeconfig", str(cluster.kubeconfig), *arguments], ok=range(256), timeout=60)

"""Area mesh: Istio's own sample applications, from Istio's own files, and its own tools on them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from lab.cluster import Cluster
from tests.lab.command import LabCommand
from tests.lab.conftest import Evidence
from tests.lab.mesh import Mesh, istioctl, sample
from tests.lab.waiting import until

LABS_OWN = ("default", "demo", "istio-system", "kube-system")
SAMPLES = ("curl", "httpbin", "helloworld", "sleep", "tcp-echo")


@contextmanager
def _running(mesh: Mesh, names: Sequence[str]) -> Iterator[None]:
    """What Istio's own files have, unchanged, beside the mesh's pods; afterwards it is deleted."""
    files = [word for name in names for word in ("-f", str(sample(name)))]
    mesh.cluster.kubectl("apply", "-n", mesh.namespace, *files)
    try:
        available = ("wait", "-n", mesh.namespace, "--for=condition=Available", "deployment", "--all")
        mesh.cluster.kubectl_wait(*available, seconds=120)
        yield
    finally:
        mesh.cluster.kubectl("delete", "-n", mesh.namespace, *files, "--wait=false")


@pytest.fixture(scope="module")
def samples(mesh: Mesh) -> Iterator[Mesh]:
    """Istio's own samples beside the mesh's pods."""
    with _running(mesh, [f"{name}/{name}.yaml" for name in SAMPLES]):
        yield mesh


def test_bookinfo_runs_from_istios_own_file(mesh: Mesh, command: LabCommand, evidence: Evidence) -> None:
    """bookinfo's page holds what its four services say: details, reviews of every version, ratings"""
    command.check("image", "load", "bookinfo-images")
    with _running(mesh, ["bookinfo/platform/kube/bookinfo.yaml"]):
        seen: set[str] = set()

        def every_version() -> bool:
            page = mesh.ask("client", "http://productpage:9080/productpage", limit=20).stdout
            if "The Comedy of Errors" in page and "An extremely entertaining play" in page:
                seen.update(version for version in ("v1", "v2", "v3") if f"reviews-{version}-" in page)
            return seen == {"v1", "v2", "v3"}

        until(every_version, "the page shows reviews of every version", 60)
        stars = json.loads(mesh.ask("client", "http://ratings:9080/ratings/0").stdout)
        details = json.loads(mesh.ask("client", "http://details:9080/details/0").stdout)
    evidence(f"{sorted(seen)}, {stars['ratings']}, {details['author']}")
    assert stars["ratings"] == {"Reviewer1": 5, "Reviewer2": 4}
    assert details["author"] == "William Shakespeare"


def test_istios_own_samples_run_from_istios_own_files(samples: Mesh, evidence: Evidence) -> None:
    """httpbin, helloworld, tcp-echo and the clients of Istio's documents run from its YAML, unchanged"""
    ask = ("exec", "-n", samples.namespace, "deploy/curl", "--", "curl", "-sS", "--max-time", "10")
    hello: set[str] = set()

    def both_versions() -> bool:
        # Its file has no probe: a pod counts as ready before its server listens.
        answer = samples.cluster.kubectl(*ask, "http://helloworld:5000/hello", ok=range(256)).stdout
        hello.update(re.findall(r"^Hello version: (v\d), instance: ", answer))
        return hello == {"v1", "v2"}

    until(both_versions, "both versions of helloworld answer")
    for client in ("deploy/curl", "deploy/sleep"):
        words = [client if word == "deploy/curl" else word for word in ask]
        origin = json.loads(samples.cluster.kubectl(*words, "http://httpbin:8000/get").stdout)
        assert origin["url"] == "http://httpbin:8000/get"
    echo = (
        "import socket; s = socket.create_connection(('tcp-echo', 9000), 5); s.sendall(b'world\\n'); "
        "print(s.recv(100).decode().strip())"
    )
    answer = samples.exec("client", ["python3", "-c", echo]).stdout.strip()
    evidence(f"{sorted(hello)}, {answer}")
    assert answer == "hello world"


def test_istios_own_tools_find_nothing_wrong(samples: Mesh, cluster: Cluster, evidence: Evidence) -> None:
    """istioctl analyze finds nothing in what the lab has; every sidecar has all of its configuration"""
    for namespace in LABS_OWN:
        told = istioctl(cluster, "analyze", "-n", namespace)
        assert "No validation issues found" in told.stdout + told.stderr, told.stdout + told.stderr
    # Istio's own sample files have no names for their ports' protocols, which it tells them.
    analysis = istioctl(cluster, "analyze", "-n", samples.namespace, "--failure-threshold", "Warning")
    assert analysis.status == 0, analysis.stdout + analysis.stderr

    def pods() -> set[str]:
        listed = json.loads(
            samples.cluster.kubectl("get", "pods", "-n", samples.namespace, "-o", "json").stdout
        )
        return {
            f"{item['metadata']['name']}.{samples.namespace}"
            for item in listed["items"]
            if "deletionTimestamp" not in item["metadata"]
        }

    def unlike() -> set[str]:
        table = [line.split(maxsplit=1) for line in istioctl(cluster, "proxy-status").stdout.splitlines()]
        good = {row[0] for row in table if "STALE" not in row[1] and "CDS,LDS,EDS" in row[1]}
        return pods() - good

    until(lambda: not unlike(), "every sidecar has all of its configuration", 20)
    evidence(f"{len(pods())} sidecars")

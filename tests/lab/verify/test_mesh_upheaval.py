"""Area mesh: what happens to requests while parts of the mesh are restarted, killed and renewed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from lab.render import Rendered
from tests.lab.conftest import Evidence, connect
from tests.lab.load import load
from tests.lab.mesh import HTTP_PORT, Mesh, service
from tests.lab.pods import Pods
from tests.lab.waiting import until
from tests.sizes import SIZES

#: Seconds for which a certificate of short life is asked, and after which a killed sidecar must be back.
SHORT_LIFE = 40
BACK_WITHIN = 10.0
CAPTURE_SECONDS = 60  # at most

#: Something that no request holds by chance.
MARKER = "underpass-plain-text-marker"


@pytest.fixture(scope="module")
def replicated(mesh: Mesh) -> Iterator[Mesh]:
    """A workload of two replicas behind the Service `replicated`."""
    container = {
        "name": "httpbin",
        "image": mesh.httpbin,
        "imagePullPolicy": "Never",
        "ports": [{"containerPort": HTTP_PORT}],
        "readinessProbe": mesh.probe(),
        # As Kubernetes advises: who does not know yet that it goes still gets an answer.
        "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
    }
    labels = {"app": "replicated"}
    mesh.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "replicated"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
        service("replicated", labels),
    )
    _rolled_out(mesh, "replicated", mesh.namespace)
    mesh.becomes("client", "http://replicated/get", "200")
    yield mesh
    mesh.cluster.kubectl("delete", "deployment,service", "replicated", "-n", mesh.namespace)


def _rolled_out(mesh: Mesh, deployment: str, namespace: str) -> None:
    mesh.cluster.kubectl_wait("rollout", "status", f"deployment/{deployment}", "-n", namespace, seconds=120)


def _restart(mesh: Mesh, deployment: str, namespace: str) -> None:
    mesh.cluster.kubectl("rollout", "restart", f"deployment/{deployment}", "-n", namespace)
    _rolled_out(mesh, deployment, namespace)


def _restart_agents(lab: Rendered) -> None:
    for node in lab.nodes:
        connect(lab, node).check_output("systemctl restart underpass-agent.service")


@pytest.mark.parametrize("what", ["workload", "istiod", "agents"])
def test_no_request_fails_while_it_is_restarted(
    replicated: Mesh, lab: Rendered, what: str, evidence: Evidence
) -> None:
    """Under load, no request fails while the workload, istiod or the node's agents are restarted"""
    restart = {
        "workload": lambda: _restart(replicated, "replicated", replicated.namespace),
        "istiod": lambda: _restart(replicated, "istiod", "istio-system"),
        "agents": lambda: _restart_agents(lab),
    }
    for _ in range(SIZES.mesh_restarts):
        with load(replicated, "client", "replicated") as seen:
            restart[what]()
        evidence(f"{seen.count} requests, {len(seen.failures)} failed")
        assert seen.failures == []
        assert seen.count > 60


def test_a_killed_sidecar_takes_its_own_requests_and_is_back(mesh: Mesh, evidence: Evidence) -> None:
    """When a sidecar is killed, requests to other pods go on; its own pod answers again within 10 s"""
    kill = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = envoy ] && kill -9 ${p#/proc/}; done; true'
    command = ("exec", "-n", mesh.namespace, "far", "-c", "istio-proxy", "--", "sh", "-c", kill)
    before = _restarts(mesh, "far")
    with load(mesh, "client", "near") as seen, load(mesh, "client", "far") as own:
        killed, began = time.time(), time.monotonic()
        mesh.cluster.kubectl(*command, ok=range(256))
        until(lambda: _restarts(mesh, "far") > before, "the sidecar is started again", BACK_WITHIN)
        mesh.becomes("client", "http://far/get", "200", seconds=BACK_WITHIN)
        took = time.monotonic() - began
        own.goes_on(200)
    within = BACK_WITHIN * mesh.cluster.slowness
    late = [one for one in own.failures if not killed - 1 <= cast(float, one[0]) <= killed + within]
    evidence(
        f"back after {took:.1f} s; {own.count} requests to it, {len(own.failures)} failed, {len(late)} late; "
        f"{seen.count} to another pod, {len(seen.failures)} failed"
    )
    assert seen.failures == []
    assert own.failures, "nothing was in flight"
    assert late == []


def _restarts(mesh: Mesh, pod: str) -> int:
    statuses: list[dict[str, Any]] = mesh.get("pod", pod)["status"]["initContainerStatuses"]
    return sum(status["restartCount"] for status in statuses)


def test_certificates_are_renewed_while_requests_go_on(mesh: Mesh, lab: Rendered, evidence: Evidence) -> None:
    """A sidecar whose certificate lives for less than a minute gets a new one in time; no request fails"""
    settings = {"proxyMetadata": {"SECRET_TTL": f"{SHORT_LIFE}s", "SECRET_GRACE_PERIOD_RATIO": "0.6"}}
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "brief",
            "labels": {"app": "brief"},
            "annotations": {"proxy.istio.io/config": json.dumps(settings)},
        },
        "spec": {
            "nodeName": lab.nodes[-1].name,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "httpbin",
                    "image": mesh.httpbin,
                    "imagePullPolicy": "Never",
                    "readinessProbe": mesh.probe(),
                }
            ],
        },
    }
    mesh.apply(document, service("brief", {"app": "brief"}))
    mesh.cluster.kubectl_wait("wait", "-n", mesh.namespace, "--for=condition=Ready", "pod/brief", seconds=60)
    mesh.becomes("client", "http://brief/get", "200")
    first = mesh.certificate("brief")["serial_number"]
    with load(mesh, "client", "brief") as seen:
        renewed = until(
            lambda: serial if (serial := mesh.certificate("brief")["serial_number"]) != first else None,
            "the certificate is renewed",
            SHORT_LIFE,
        )
    evidence(f"{first} then {renewed}; {seen.count} requests, {len(seen.failures)} failed")
    assert seen.failures == []


def test_nothing_but_tls_is_on_the_wire_between_nodes(
    mesh: Mesh, outside: Pods, lab: Rendered, evidence: Evidence
) -> None:
    """Between nodes, what sidecars say is TLS; the same capture shows plain text where there is no sidecar"""
    assert len(lab.nodes) > 1, "the lab has one node"
    host = connect(lab, lab.nodes[-1])
    file = "/tmp/underpass-wire.pcap"  # on the node
    limit = CAPTURE_SECONDS * mesh.cluster.slowness
    capture = f"timeout {limit:g} tcpdump -i any -U -s 0 -w {file} udp port 8472 2>/dev/null"
    outside.run("remote", lab.nodes[-1].name)
    outside.ready()
    host.check_output("systemd-run --quiet --unit=underpass-wire -- sh -c %s", capture)
    try:
        until(lambda: host.run("test -s %s", file).rc == 0, "the capture has begun")
        assert mesh.status("client", "http://far/get", "-H", f"x-marker: {MARKER}-mesh") == "200"
        say = (
            "import socket; s = socket.create_connection(('%s', 8080), 5); s.sendall(b'%s'); s.recv(9); "
            "s.recv(99)" % (outside.address("remote"), f"{MARKER}-plain")
        )
        assert outside.exec("plain", ["python3", "-c", say]).status == 0
        until(lambda: host.run("grep -qa %s-plain %s", MARKER, file).rc == 0, "plain text is seen", 15)
        seen = host.run("grep -ca %s-mesh %s", MARKER, file).stdout.strip()
        size = host.check_output("stat -c %%s %s", file).strip()
    finally:
        host.run("systemctl stop underpass-wire.service; rm -f %s", file)
    evidence(f"{size} bytes captured, marker in plain text {seen} times")
    assert seen == "0"

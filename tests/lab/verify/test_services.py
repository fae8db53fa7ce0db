"""Area services: ClusterIP, NodePort, affinity, no endpoints; without kube-proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.render import Rendered
from tests.lab.conftest import Evidence, connect
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.waiting import until

PORT = 80


def _service(name: str, selector: dict[str, str], **spec: object) -> dict[str, object]:
    ports = [
        {"name": proto.lower(), "port": PORT, "targetPort": SERVER_PORT, "protocol": proto}
        for proto in ("TCP", "UDP")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": ports, **spec},
    }


@pytest.fixture(scope="module")
def services(pods: Pods) -> Iterator[Pods]:
    """Services of several kinds over the suite's pods."""
    pods.apply(
        _service("all", {"set": "servers"}),
        _service("sticky", {"set": "servers"}, sessionAffinity="ClientIP"),
        _service("nobody", {"app": "nobody"}),
        _service("outside", {"app": "b-0"}, type="NodePort"),
    )
    until(lambda: pods.talk("a-0", "all", PORT, limit=1).startswith(("a-", "b-")), "the Service answers")
    yield pods


def _field(pods: Pods, name: str, path: str) -> str:
    return pods.cluster.kubectl("get", "service", name, "-n", pods.namespace, "-o", f"jsonpath={path}").stdout


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_service_spreads_over_all_backends(services: Pods, proto: str, evidence: Evidence) -> None:
    """Connections to a Service reach every backend, on all nodes"""
    seen = {services.talk("a-0", "all", PORT, proto).split()[0] for _ in range(30)}
    evidence(sorted(seen))
    assert {"a-1", "b-0"} <= seen


def test_affinity_keeps_a_client_with_its_backend(services: Pods, evidence: Evidence) -> None:
    """With session affinity, a client stays with one backend"""
    seen = {services.talk("a-0", "sticky", PORT).split()[0] for _ in range(8)}
    evidence(sorted(seen))
    assert len(seen) == 1


def test_a_service_without_endpoints_refuses_at_once(services: Pods, evidence: Evidence) -> None:
    """A Service with no endpoint refuses the connection: ECONNREFUSED, no time-out, no EPERM"""
    answer = services.talk("a-0", "nobody", PORT)
    evidence(answer)
    assert answer == "ECONNREFUSED"


def test_a_client_sees_the_services_address_as_its_peer(services: Pods, evidence: Evidence) -> None:
    """getpeername on a connection to a Service gives the Service's address"""
    address = _field(services, "all", "{.spec.clusterIP}")
    code = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 80), 5); "
        "print(s.getpeername()[0]); s.recv(10)"
    )
    done = services.exec("a-0", ["python3", "-c", code, address])
    evidence(done.stdout.strip())
    assert done.stdout.strip() == address


def test_nodes_reach_services(services: Pods, lab: Rendered, evidence: Evidence) -> None:
    """Processes of every node reach a Service by its cluster address"""
    address = _field(services, "all", "{.spec.clusterIP}")
    answers = [
        connect(lab, node).check_output("curl -s --max-time 3 --http0.9 http://%s:80/ | head -c 3", address)
        for node in lab.nodes
    ]
    evidence(answers)
    assert all(answer[:2] in ("a-", "b-") for answer in answers)


def test_a_node_port_is_served_by_every_node(services: Pods, lab: Rendered, evidence: Evidence) -> None:
    """A NodePort answers at every node's address, from this machine, wherever the backend runs"""
    import socket

    port = int(_field(services, "outside", "{.spec.ports[0].nodePort}"))
    answers = []
    for node in lab.nodes:
        with socket.create_connection((node.address, port), 5) as connection:
            answers.append(connection.recv(100).decode().split()[0])
    evidence(answers)
    assert answers == ["b-0"] * len(lab.nodes)


def test_a_pod_reaches_itself_through_its_service(services: Pods, evidence: Evidence) -> None:
    """A pod reaches itself through a Service that it backs"""
    answer = services.talk("b-0", "outside", PORT)
    evidence(answer)
    assert answer.startswith("b-0 ")

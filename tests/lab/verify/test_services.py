"""Area services: ClusterIP, NodePort, affinity, no endpoints; without kube-proxy."""

from __future__ import annotations

import json
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


def test_a_new_service_is_found_by_name_at_once(services: Pods, evidence: Evidence) -> None:
    """A name that did not exist a moment ago is found as soon as its Service is made"""
    asked = {services.talk("a-0", "late", PORT) for _ in range(4)}  # both DNS servers, most likely
    services.apply(_service("late", {"set": "servers"}))

    def answered() -> bool:
        return all(services.talk(pod, "late", PORT)[:2] in ("a-", "b-") for pod in ("a-0", "b-0") * 2)

    # A server of names that remembers "there is none" does so for half a minute.
    until(answered, "the new Service answers from both nodes", 15)
    evidence({"before": sorted(asked), "after": "answered"})
    assert asked == {"NXDOMAIN"}


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


HOST_PORT = 18080


@pytest.fixture(scope="module")
def host_port(pods: Pods, lab: Rendered) -> str:
    """A pod of the first node that has a port of the node."""
    port = {"containerPort": SERVER_PORT, "hostPort": HOST_PORT}
    pods.run("porter", lab.nodes[0].name, ports=[port])
    pods.ready()
    return "porter"


@pytest.mark.parametrize("client", ["a-1", "b-0", "this machine"])
def test_a_host_port_is_reached_from_everywhere(
    pods: Pods, lab: Rendered, host_port: str, client: str, evidence: Evidence
) -> None:
    """A hostPort answers pods of its node and of others, and clients outside, each under its own address"""
    import socket

    where = lab.nodes[0].address
    if client == "this machine":
        with socket.create_connection((where, HOST_PORT), 5) as connection:
            answer, own = connection.recv(100).decode().strip(), connection.getsockname()[0]
    elif client == "b-0" and len(lab.nodes) < 2:
        pytest.skip("the lab has one node")
    else:
        answer, own = pods.talk(client, where, HOST_PORT), pods.address(client)
    evidence(answer)
    assert answer == f"{host_port} {own}"


def test_health_check_ports_tell_where_the_endpoints_are(
    services: Pods, lab: Rendered, evidence: Evidence
) -> None:
    """A health check node port answers 200 on nodes with a ready endpoint of the Service, else 503"""
    local = _service("local", {"app": "a-0"}, type="LoadBalancer", externalTrafficPolicy="Local")
    services.apply(local)
    port = int(_field(services, "local", "{.spec.healthCheckNodePort}"))
    wanted = [("200", 1), *[("503", 0)] * (len(lab.nodes) - 1)]

    def answers() -> list[tuple[str, int]]:
        said = (
            connect(lab, node).run("curl -s -w ' %%{http_code}' http://%s:%s/", node.address, str(port))
            for node in lab.nodes
        )
        pairs = [one.stdout.rsplit(" ", 1) for one in said]
        return [(status, json.loads(body or "{}").get("localEndpoints", -1)) for body, status in pairs]

    seen = until(lambda: found if (found := answers()) == wanted else None, "every node answers for itself")
    evidence(seen)
    services.cluster.kubectl("delete", "service", "local", "-n", services.namespace)
    until(lambda: {status for status, _ in answers()} == {"000"}, "the port is closed with its Service")

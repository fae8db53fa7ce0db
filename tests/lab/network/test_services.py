"""Services beyond the plain: traffic policies, backends that end, ports of the host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.town import Town, server
from tests.lab.pods import Pods
from tests.lab.waiting import until

PORT, BACKEND, HOST_PORT = 80, 8080, 18080


def service(name: str, selector: dict[str, str], **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": PORT, "targetPort": BACKEND}], **spec},
    }


def field(pods: Pods, name: str, path: str) -> str:
    return pods.cluster.kubectl("get", "service", name, "-n", pods.namespace, "-o", f"jsonpath={path}").stdout


@pytest.fixture
def blue(town: Town) -> Iterator[Pods]:
    """Namespace blue; Services made by a test are gone after it."""
    yield town.spaces["blue"]
    town.spaces["blue"].cluster.kubectl("delete", "service", "--all", "-n", "blue")


def from_here(address: str, port: int) -> str:
    """What this machine, which is no node, gets from a port of a node."""
    try:
        with socket.create_connection((address, port), 2) as end:
            return end.recv(100).decode().strip()
    except OSError as fault:
        return type(fault).__name__


def test_internal_traffic_stays_on_the_node(town: Town, blue: Pods, evidence: Evidence) -> None:
    """internalTrafficPolicy Local: the own node's backends, and ECONNREFUSED where there is none"""
    blue.apply(service("near", {"app": "b"}, internalTrafficPolicy="Local"))  # r1, on the second node
    address = field(blue, "near", "{.spec.clusterIP}")
    until(lambda: town.probe("r2", [("tcp", address, PORT)])[0].startswith("r1 "), "the own node's backend")
    answers = town.probe("r0", [("tcp", address, PORT)] * 5)
    evidence(answers[0])
    assert set(answers) == {"ECONNREFUSED"}


def test_external_traffic_keeps_its_address(lab: Rendered, blue: Pods, evidence: Evidence) -> None:
    """externalTrafficPolicy Local: only nodes with a backend answer, and the backend sees the client"""
    blue.apply(service("edge", {"app": "b"}, type="NodePort", externalTrafficPolicy="Local"))
    port = int(field(blue, "edge", "{.spec.ports[0].nodePort}"))
    first, second = lab.nodes[:2]
    until(lambda: from_here(second.address, port).startswith("r1 "), "the node of the backend answers")
    evidence(from_here(second.address, port))
    assert from_here(second.address, port) == f"r1 {lab.gateway}"
    assert not from_here(first.address, port).startswith("r1")


def test_backends_that_end_serve_as_long_as_they_are_needed(
    lab: Rendered, town: Town, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """New connections go to the backend that stays, old ones end with theirs; the last one serves on"""
    pods = space("turn")
    for number, node in enumerate(lab.nodes[:2]):
        pods.run(
            f"t{number}", node.name, labels={"set": "turn"}, containers=[server(pods, [BACKEND])],
            terminationGracePeriodSeconds=40,
        )  # fmt: skip
    pods.ready()
    pods.apply(service("turn", {"set": "turn"}))
    address = field(pods, "turn", "{.spec.clusterIP}")
    target = ("tcp", address, PORT)

    def reached() -> set[str]:
        return {answer.split()[0] for answer in town.probe("r0", [target] * 16)}

    def end(name: str) -> None:
        pods.cluster.kubectl("delete", "pod", name, "-n", "turn", "--wait=false", "--grace-period=40")

    until(lambda: reached() == {"t0", "t1"}, "both serve")
    with town.flowing({"r0": [("stream", address, PORT)] * 6}) as flows:
        end("t0")
        until(lambda: reached() == {"t1"}, "new connections go to the one that stays", 15)
        assert reached() == {"t1"}
        end("t1")
        assert reached() <= {"t0", "t1"}
        until(lambda: reached() <= {"t0", "t1"}, "those that end serve where nobody else does", 5)
    evidence(f"{len(flows)} connections, {sum(flow['received'] for flow in flows)} bytes echoed")
    assert [(f["received"], f["fault"]) for f in flows] == [(f["sent"], "") for f in flows]
    pods.cluster.kubectl("delete", "pod", "t0", "t1", "-n", "turn", "--grace-period=0", "--force")
    until(lambda: reached() == {"ECONNREFUSED"}, "with none left, connections are refused at once", 15)


def test_a_port_of_the_host(
    lab: Rendered, town: Town, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """hostPort: the pod answers at its node's address, to this machine and to the node's pods"""
    pods = space("ports")
    first, second = lab.nodes[:2]
    ports = [{"containerPort": BACKEND, "hostPort": HOST_PORT}]
    pods.run("h", first.name, containers=[server(pods, [BACKEND]) | {"ports": ports}])
    pods.ready()
    until(lambda: from_here(first.address, HOST_PORT).startswith("h "), "this machine is answered")
    evidence(from_here(first.address, HOST_PORT))
    assert town.probe("r0", [("tcp", first.address, HOST_PORT)])[0].startswith("h ")
    assert not from_here(second.address, HOST_PORT).startswith("h "), "the other node has no such port"

"""Health check node ports say what kube-proxy's say, and follow their Services."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model.objects import EndpointSlice, Name, Service, SliceEndpoint
from agent.planes.base import Change, Kind
from agent.planes.kubernetes import parse
from agent.services.health import WEIGHT_HEADER, Health, HealthPorts, compile_health
from tests.fake_kernel import FakeKernel
from tests.unit.test_agent_engine import Bench

WEB = Name("default", "web")
SERVICE = Service(WEB, "LoadBalancer", ("10.96.0.9",), (), external_local=True, health_check_port=31000)


def backing(*endpoints: SliceEndpoint) -> EndpointSlice:
    return EndpointSlice(Name("default", "web-1"), WEB, (), endpoints)


def at(node: str, address: str, *, ready: bool = True) -> SliceEndpoint:
    return SliceEndpoint((address,), ready, True, not ready, node)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ports:
    """Health check ports on loopback, and who asks them."""

    def __init__(self) -> None:
        self.healthy = True
        self.served = HealthPorts(lambda: self.healthy, "127.0.0.1")

    def ask(self, port: int) -> tuple[int, Any, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        return answer.status, body, answer.getheader(WEIGHT_HEADER)


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    made.served.stop()


def test_only_ready_endpoints_of_this_node_count() -> None:
    slices = [
        backing(at("node-1", "10.1.0.2"), at("node-1", "10.1.0.3", ready=False), at("node-2", "10.1.1.2")),
        backing(at("node-1", "10.1.0.4"), at("node-1", "10.1.0.2")),
    ]
    assert compile_health(SERVICE, slices, "node-1") == {31000: Health(WEB, 2)}
    assert compile_health(SERVICE, slices, "node-3") == {31000: Health(WEB, 0)}


def test_a_service_that_asks_for_none_has_none() -> None:
    item = {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80}]},
    }
    plain = parse.service(item)
    item["spec"] |= {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}  # type: ignore[operator]
    local = parse.service(item)
    assert plain is not None
    assert local is not None
    assert compile_health(plain, [], "node-1") == {}
    assert compile_health(local, [], "node-1") == {31000: Health(WEB, 0)}


def test_a_node_with_ready_endpoints_answers_200(ports: Ports) -> None:
    port = free_port()
    ports.served.apply({port: Health(WEB, 2)})
    said = {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert ports.ask(port) == (200, said, "2")


def test_a_node_without_endpoints_answers_503(ports: Ports) -> None:
    port = free_port()
    ports.served.apply({port: Health(WEB, 1)})
    ports.served.apply({port: Health(WEB, 0)})
    status, said, weight = ports.ask(port)
    assert (status, said["localEndpoints"], weight) == (503, 0, "0")


def test_a_node_whose_tables_are_not_in_step_answers_503(ports: Ports) -> None:
    port = free_port()
    ports.served.apply({port: Health(WEB, 1)})
    ports.healthy = False
    status, said, _ = ports.ask(port)
    assert (status, said["serviceProxyHealthy"]) == (503, False)


def test_a_port_that_is_no_longer_wanted_is_closed(ports: Ports) -> None:
    port = free_port()
    ports.served.apply({port: Health(WEB, 1)})
    ports.served.apply({})
    with pytest.raises(ConnectionRefusedError):
        ports.ask(port)


def test_a_port_that_is_taken_keeps_no_other_from_being_served(ports: Ports) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, port = other.getsockname()[1], free_port()
        with pytest.raises(OSError, match=f"{taken} .default/web.: Address already in use"):
            ports.served.apply({taken: Health(WEB, 1), port: Health(WEB, 1)})
        assert ports.ask(port)[0] == 200


def test_the_engine_tells_the_ports_as_services_and_slices_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FakeKernel())
    bench.complete(Change(Kind.SERVICE, "default/web", SERVICE))
    assert bench.effects.health == {31000: Health(WEB, 0)}
    bench.tell(Change(Kind.SLICE, "default/web-1", backing(at("node-1", "10.1.0.2"))))
    assert bench.effects.health == {31000: Health(WEB, 1)}
    bench.tell(Change(Kind.SERVICE, "default/web", None))
    assert bench.effects.health == {}
    bench.engine.stop()

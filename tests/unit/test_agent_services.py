"""Services become frontends as kube-proxy means them, and reach the maps without a half-written moment."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model.objects import (
    ContainerPort,
    EndpointSlice,
    Name,
    Pod,
    Protocol,
    Service,
    ServicePort,
    SliceEndpoint,
)
from agent.planes.kubernetes import parse
from agent.services.compile import Backend, Frontend, compile_host_ports, compile_service
from agent.sync import ServiceSync, TableSync
from datapath import tables
from datapath.constants import Scope, ServiceFlag
from datapath.tables import ServiceKey
from tests.fake_kernel import FakeMap

NODE = "node-1"
WEB = Name("default", "web")


def endpoint(
    address: str, *, ready: bool = True, serving: bool = True, terminating: bool = False, node: str = NODE
) -> SliceEndpoint:
    return SliceEndpoint((address,), ready, serving, terminating, node)


def web(**more: Any) -> Service:
    given: dict[str, Any] = {
        "name": WEB,
        "kind": "ClusterIP",
        "addresses": ("10.96.0.9",),
        "ports": (ServicePort("http", Protocol.TCP, 80),),
    }
    return Service(**{**given, **more})


def one_slice(*endpoints: SliceEndpoint, ports: Any = (("http", Protocol.TCP, 8080),)) -> EndpointSlice:
    return EndpointSlice(Name("default", "web-1"), WEB, tuple(ports), endpoints)


def key(address: str, port: int, scope: Scope = Scope.CLUSTER, protocol: int = 6) -> ServiceKey:
    return ServiceKey(address=ipaddress.ip_address(address), port=port, protocol=protocol, scope=int(scope))


def backends(found: Mapping[ServiceKey, Frontend], at: ServiceKey) -> list[str]:
    return [f"{backend.address}:{backend.port}" for backend in found[at].backends]


def test_a_cluster_address_leads_to_the_ready_endpoints_of_all_slices() -> None:
    slices = [
        one_slice(endpoint("10.1.0.2"), endpoint("10.1.0.3", ready=False, serving=False)),
        one_slice(endpoint("10.1.1.2", node="node-2")),
    ]
    found = compile_service(web(), slices, NODE)
    assert list(found) == [key("10.96.0.9", 80)]
    assert backends(found, key("10.96.0.9", 80)) == ["10.1.0.2:8080", "10.1.1.2:8080"]


def test_a_service_without_endpoints_is_there_with_no_backend() -> None:
    found = compile_service(web(), [], NODE)
    assert found[key("10.96.0.9", 80)].backends == ()


def test_ports_are_matched_by_name_and_protocol() -> None:
    service = web(ports=(ServicePort("a", Protocol.TCP, 80), ServicePort("b", Protocol.UDP, 80)))
    slices = [one_slice(endpoint("10.1.0.2"), ports=(("a", Protocol.TCP, 1), ("b", Protocol.UDP, 2)))]
    found = compile_service(service, slices, NODE)
    assert backends(found, key("10.96.0.9", 80)) == ["10.1.0.2:1"]
    assert backends(found, key("10.96.0.9", 80, protocol=17)) == ["10.1.0.2:2"]


def test_while_none_is_ready_those_that_serve_while_terminating_do() -> None:
    leaving = endpoint("10.1.0.2", ready=False, serving=True, terminating=True)
    failing = endpoint("10.1.0.3", ready=False, serving=False, terminating=True)
    found = compile_service(web(), [one_slice(leaving, failing)], NODE)
    assert backends(found, key("10.96.0.9", 80)) == ["10.1.0.2:8080"]
    found = compile_service(web(), [one_slice(leaving, endpoint("10.1.0.4"))], NODE)
    assert backends(found, key("10.96.0.9", 80)) == ["10.1.0.4:8080"]


def test_an_endpoint_that_is_not_ready_but_does_not_terminate_never_serves() -> None:
    found = compile_service(web(), [one_slice(endpoint("10.1.0.2", ready=False, serving=True))], NODE)
    assert backends(found, key("10.96.0.9", 80)) == []


def test_internal_traffic_policy_local_keeps_to_this_node() -> None:
    slices = [one_slice(endpoint("10.1.0.2"), endpoint("10.1.1.2", node="node-2"))]
    found = compile_service(web(internal_local=True), slices, NODE)
    assert backends(found, key("10.96.0.9", 80)) == ["10.1.0.2:8080"]
    found = compile_service(web(internal_local=True), slices, "node-3")
    assert backends(found, key("10.96.0.9", 80)) == []


def test_external_traffic_policy_local_is_for_clients_from_outside_alone() -> None:
    slices = [one_slice(endpoint("10.1.1.2", node="node-2"))]
    service = web(
        kind="LoadBalancer",
        ports=(ServicePort("http", Protocol.TCP, 80, 30080),),
        external_addresses=("192.0.2.1",),
        external_local=True,
    )
    found = compile_service(service, slices, NODE)
    for inside in (key("192.0.2.1", 80), key("::", 30080)):
        assert backends(found, inside) == ["10.1.1.2:8080"]
    for outside in (key("192.0.2.1", 80, Scope.EXTERNAL), key("::", 30080, Scope.EXTERNAL)):
        assert backends(found, outside) == []
        assert found[outside].flags == ServiceFlag.KEEP_SOURCE | ServiceFlag.DROP_IF_EMPTY
    there = compile_service(service, slices, "node-2")
    assert backends(there, key("::", 30080, Scope.EXTERNAL)) == ["10.1.1.2:8080"]


def test_with_no_endpoint_anywhere_an_external_client_is_refused_not_ignored() -> None:
    service = web(ports=(ServicePort("http", Protocol.TCP, 80, 30080),), external_local=True)
    found = compile_service(service, [], NODE)
    assert not found[key("::", 30080, Scope.EXTERNAL)].flags & ServiceFlag.DROP_IF_EMPTY


def test_affinity_is_remembered_under_a_number_that_outlives_changes_of_backends() -> None:
    first = compile_service(web(affinity=600), [one_slice(endpoint("10.1.0.2"))], NODE)
    second = compile_service(web(affinity=600), [one_slice(endpoint("10.1.0.3"))], NODE)
    at = key("10.96.0.9", 80)
    assert first[at].affinity == second[at].affinity != 0
    assert first[at].affinity_seconds == 600
    assert first[at].flags == ServiceFlag.AFFINITY


def test_host_ports_listen_on_the_nodes_addresses_and_keep_the_source() -> None:
    ports = (
        ContainerPort("a", Protocol.TCP, 8080, 18080),
        ContainerPort("b", Protocol.UDP, 53, 5353, "172.30.0.2"),
        ContainerPort("c", Protocol.TCP, 81, 8181, "127.0.0.1"),
        ContainerPort("d", Protocol.TCP, 82),
    )
    pod = Pod(Name("default", "p"), "u", NODE, {}, "default", ports=ports)
    found = compile_host_ports(pod, "10.1.0.2", ["172.30.0.2", "172.31.0.2"])
    assert set(found) == {
        *(key(a, 18080, s) for a in ("172.30.0.2", "172.31.0.2") for s in Scope),
        *(key("172.30.0.2", 5353, s, 17) for s in Scope),
    }
    assert all(frontend.flags == ServiceFlag.KEEP_SOURCE for frontend in found.values())


# Reading the API's objects


def service_item(**spec: Any) -> dict[str, Any]:
    given = {"clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}], **spec}
    return {"metadata": {"name": "web", "namespace": "default"}, "spec": given}


def test_defaults_of_the_api_are_filled_in() -> None:
    service = parse.service(service_item(sessionAffinity="ClientIP"))
    assert service is not None
    assert service.affinity == 10800
    assert service.ports == (ServicePort("", Protocol.TCP, 80, 0),)
    headless = parse.service(service_item(clusterIPs=["None"]))
    assert headless is not None
    assert headless.addresses == ()


def test_balancers_in_proxy_mode_see_their_traffic() -> None:
    item = service_item(type="LoadBalancer")
    item["status"] = {
        "loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "Proxy"}, {"ip": "192.0.2.2"}]}
    }
    service = parse.service(item)
    assert service is not None
    assert service.external_addresses == ("192.0.2.2",)


def test_services_that_are_not_ours_are_left_alone() -> None:
    assert parse.service(service_item(type="ExternalName")) is None
    other = service_item()
    other["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "mine"}
    assert parse.service(other) is None


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, (True, True, False)),
        ({"ready": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    ],
)
def test_conditions_default_as_the_api_says(
    conditions: dict[str, Any], expected: tuple[bool, bool, bool]
) -> None:
    item = {
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.0.2"], "conditions": conditions}],
    }
    found = parse.endpoint_slice(item)
    assert found is not None
    assert found.service == WEB
    one = found.endpoints[0]
    assert (one.ready, one.serving, one.terminating) == expected


# Writing the maps


class Maps:
    def __init__(self) -> None:
        self.services: FakeMap[tables.ServiceKey, tables.Service] = FakeMap()
        self.backends: FakeMap[tables.BackendKey, tables.Backend] = FakeMap()
        self.members: FakeMap[tables.MemberKey, tables.Member] = FakeMap()
        self.faults: list[str] = []

    def sync(self) -> ServiceSync:
        def report(table: str, fault: OSError) -> None:
            self.faults.append(table)

        sync = ServiceSync(self.services, self.backends, self.members, report)
        sync.adopt()
        return sync

    def look_up(self, at: tables.ServiceKey) -> list[str] | None:
        """What the programs see: the backends of a frontend; KeyError for a slot that is missing."""
        service = self.services.content.get(at)
        if service is None:
            return None
        slots = [
            self.backends.content[tables.BackendKey(service=service.id, slot=slot)]
            for slot in range(service.count)
        ]
        return [f"{backend.address}:{backend.port}" for backend in slots]


A, B = key("10.96.0.1", 80), key("10.96.0.2", 80)


def frontend(*numbers: int, affinity: int = 0) -> Frontend:
    addresses = (Backend(ipaddress.IPv4Address(f"10.1.0.{n}"), 80) for n in numbers)
    return Frontend("owner", tuple(addresses), affinity, 60 if affinity else 0)


def test_every_moment_of_a_change_shows_the_old_or_the_new_backends() -> None:
    maps = Maps()
    sync = maps.sync()
    sync.wanted.put(("a",), {A: frontend(1, 2, 3)})
    sync.flush()
    seen: list[list[str] | None] = []
    for table in (maps.services, maps.backends, maps.members):
        table.before_write = lambda: seen.append(maps.look_up(A))
    sync.wanted.put(("a",), {A: frontend(4)})
    sync.flush()
    old, new = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"], ["10.1.0.4:80"]
    assert seen
    assert all(moment in (old, new) for moment in seen)
    assert maps.look_up(A) == new
    assert len(maps.backends.content) == 1, "the old slots are gone"


def test_what_is_the_same_is_not_written_also_after_a_restart() -> None:
    maps = Maps()
    sync = maps.sync()
    sync.wanted.put(("a",), {A: frontend(1, 2), B: frontend(affinity=5)})
    assert sync.flush() == 2
    writes = maps.services.writes + maps.backends.writes + maps.members.writes
    again = maps.sync()
    again.wanted.put(("a",), {A: frontend(1, 2), B: frontend(affinity=5)})
    assert again.flush() == 0
    assert maps.services.writes + maps.backends.writes == writes - maps.members.writes


def test_a_restart_clears_what_is_no_longer_wanted_and_orphans() -> None:
    maps = Maps()
    sync = maps.sync()
    sync.wanted.put(("a",), {A: frontend(1, 2, affinity=9), B: frontend(3)})
    sync.flush()
    maps.backends.content[tables.BackendKey(service=999, slot=0)] = tables.Backend(
        address=ipaddress.IPv4Address("10.9.9.9"), id=1, port=1
    )
    maps.members.content[tables.MemberKey(service=999, backend=1)] = tables.Member(slot=0)
    again = maps.sync()
    again.wanted.put(("a",), {B: frontend(3)})
    again.flush()
    assert set(maps.services.content) == {B}
    assert maps.look_up(B) == ["10.1.0.3:80"]
    assert len(maps.backends.content) == 1
    assert not maps.members.content


def test_a_full_map_is_reported_and_the_rest_is_served() -> None:
    maps = Maps()
    maps.backends.room = 2
    sync = maps.sync()
    sync.wanted.put(("a",), {A: frontend(1, 2, 3)})
    sync.wanted.put(("b",), {B: frontend(4)})
    sync.flush()
    assert maps.faults == ["services"]
    assert maps.look_up(A) is None
    assert maps.look_up(B) == ["10.1.0.4:80"]
    maps.backends.room = 10
    sync.flush()
    assert maps.look_up(A) == ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"]


changes = st.lists(
    st.tuples(
        st.sampled_from([A, B]), st.one_of(st.none(), st.lists(st.integers(1, 5), max_size=4, unique=True))
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(changes, st.integers(0, 12))
def test_any_changes_with_a_restart_anywhere_end_in_the_wanted_tables(
    plan: list[tuple[ServiceKey, list[int] | None]], restart: int
) -> None:
    maps = Maps()
    sync = maps.sync()
    state: dict[ServiceKey, Frontend] = {}
    for index, (at, numbers) in enumerate(plan):
        if index == restart:
            sync = maps.sync()
        if numbers is None:
            state.pop(at, None)
        else:
            state[at] = frontend(*sorted(numbers), affinity=7)
        sync.wanted.put(("all",), state)
        sync.flush()
    sync.flush()
    for at in (A, B):
        wanted = state.get(at)
        assert maps.look_up(at) == (
            None if wanted is None else [f"{b.address}:{b.port}" for b in wanted.backends]
        )
    assert len(maps.backends.content) == sum(len(f.backends) for f in state.values())
    assert len(maps.members.content) == len(maps.backends.content)


def test_a_table_keeps_to_what_fits_and_tries_the_rest_again() -> None:
    kernel: FakeMap[int, str] = FakeMap(room=2)
    faults: list[str] = []
    table = TableSync("t", kernel, lambda name, _: faults.append(name))
    kernel.content[99] = "left over"
    table.adopt()
    table.wanted.put(("a",), {1: "one", 2: "two"})
    table.put()
    assert faults == ["t"]
    table.drop()
    assert set(kernel.content) < {1, 2}
    table.put()
    assert kernel.content == {1: "one", 2: "two"}


def test_where_two_owners_want_a_key_the_first_wins_and_the_other_follows_it() -> None:
    kernel: FakeMap[int, str] = FakeMap()
    table = TableSync("t", kernel, lambda *_: None)
    table.adopt()
    table.wanted.put(("b",), {1: "from b"})
    table.wanted.put(("a",), {1: "from a"})
    table.put()
    assert kernel.content == {1: "from a"}
    table.wanted.put(("a",), {})
    table.put()
    table.drop()
    assert kernel.content == {1: "from b"}

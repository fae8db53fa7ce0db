"""The engine writes what judges before what lets in, and only what a change concerns."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.addresses import host_key, prefix_key
from agent.effects import NotReadyError, Settings
from agent.endpoints import LocalEndpoint
from agent.engine import Engine
from agent.identity.allocator import IdentityAllocator
from agent.identity.labels import identity_labels
from agent.ipam import Attachment, Ipam
from agent.links import Cable
from agent.model.objects import (
    INJECTED_MARK,
    Endpoint,
    Identity,
    Labels,
    Name,
    Namespace,
    Node,
    Pod,
    PolicySource,
)
from agent.planes.base import Change, Kind, Synced
from agent.policy.compile import HOST_RULE, OPEN_RULES
from agent.policy.rules import Parsed
from agent.services.health import Health
from datapath.codec import UNSPECIFIED
from datapath.constants import CacheFlag, NamespaceFlag, NodeFlag
from datapath.tables import AddressKey
from tests.fake_kernel import FakeKernel
from tests.unit.test_agent_identity import Server

OWN = Node("node-1", "n1", ("172.30.0.2",), ("10.244.0.0/24",))
OTHER = Node("node-2", "n2", ("172.30.0.3",), ("10.244.1.0/24",))
BLUE = Namespace("blue", {"team": "b"})


class Recorded:
    """The engine's effects, remembered."""

    def __init__(self) -> None:
        self.changed: list[LocalEndpoint] = []
        self.gone: list[LocalEndpoint] = []
        self.wanted: list[tuple[int, Labels]] = []
        self.read: list[Parsed] = []
        self.moved: list[set[int]] = []
        self.renamed: dict[ipaddress.IPv4Address, int] = {}
        self.nodes: list[str] = []
        self.health: Mapping[int, Health] = {}
        self.failed: list[str] = []

    def nodes_changed(self, own: Node, others: Sequence[Node]) -> None:
        self.nodes = [own.name, *(node.name for node in others)]

    def endpoint_changed(self, endpoint: LocalEndpoint) -> None:
        self.changed.append(endpoint)

    def endpoint_gone(self, endpoint: LocalEndpoint) -> None:
        self.gone.append(endpoint)

    def endpoint_seen(self, key: str, endpoint: Endpoint | None) -> None:
        pass

    def identity_wanted(self, endpoint: LocalEndpoint, labels: Labels) -> None:
        self.wanted.append((endpoint.id, labels))

    def policy_read(self, source: PolicySource, parsed: Parsed) -> None:
        self.read.append(parsed)

    def policies_moved(self, endpoints: set[int]) -> None:
        self.moved.append(endpoints)

    def identities_moved(self, peers: Mapping[ipaddress.IPv4Address, int]) -> None:
        self.renamed.update(peers)

    def table_failed(self, table: str, fault: str) -> None:
        self.failed.append(table)

    def health_changed(self, ports: Mapping[int, Health]) -> None:
        self.health = ports


class Bench:
    """An engine on maps in memory."""

    def __init__(self, folder: Path, kernel: FakeKernel, restored: Sequence[LocalEndpoint] = ()) -> None:
        self.kernel = kernel
        self.ipam = Ipam(folder / "addresses.json")
        self.effects = Recorded()
        self.engine = Engine(
            Settings("node-1", "10.244.0.0/16", "10.96.0.0/16"),
            kernel,
            self.ipam,
            IdentityAllocator(Server()),
            lambda *_, **__: None,
        )
        self.engine.effects = self.effects
        self.engine.start(frozenset(Kind), restored)

    def tell(self, *changes: Change | Synced) -> None:
        """Have the engine take in the changes, and wait until they are in the kernel."""
        self.engine.submit(changes)
        if self.engine.ready:
            self.engine.call(lambda: None)
        else:
            self.engine.ask(lambda: None)

    def complete(self, *more: Change) -> None:
        self.tell(
            Change(Kind.NODE, "node-1", OWN),
            Change(Kind.NODE, "node-2", OTHER),
            Change(Kind.NAMESPACE, "blue", BLUE),
            *more,
            *(Synced(kind) for kind in Kind),
        )
        assert self.engine.wait_ready(5)

    def put(self, endpoint: LocalEndpoint) -> None:
        self.engine.call(lambda: self.engine.put_endpoint(endpoint))


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def bench(tmp_path: Path, kernel: FakeKernel) -> Iterator[Bench]:
    made = Bench(tmp_path, kernel)
    yield made
    made.engine.stop()


def pod(name: str, **labels: str) -> Pod:
    return Pod(Name("blue", name), f"uid-{name}", "node-1", labels, "default")


def local(number: int, of: Pod, identity: int, labels: Labels | None = None) -> LocalEndpoint:
    name = of.name
    attachment = Attachment(
        container=f"c{number}",
        interface="eth0",
        address=f"10.244.0.{10 + number}",
        namespace=name.namespace,
        pod=name.name,
        pod_uid=of.uid,
        netns="",
        host_interface=f"pod{number}",
        mac="02:00:00:00:00:01",
        since=0.0,
        endpoint=number,
        ready=True,
    )
    cable = Cable(f"pod{number}", 100 + number, "02:00:00:00:00:01", "02:00:00:00:00:02", 1450, 7000 + number)
    return LocalEndpoint(attachment, cable, identity, labels)


def labelled(number: int, of: Pod, identity: int) -> LocalEndpoint:
    return local(number, of, identity, identity_labels(of, BLUE))


def test_a_sidecar_sees_the_services_addresses(bench: Bench, kernel: FakeKernel) -> None:
    """Whether the pod is known at once or, after a restart of the agent, only later."""
    bench.complete()
    plain, injected = pod("a"), dataclasses.replace(pod("b"), annotations={INJECTED_MARK: "{}"})
    for number, each in ((1, plain), (2, injected)):
        bench.put(labelled(number, each, 300 + number))
        bench.tell(Change(Kind.POD, f"blue/{each.name.name}", each))
    flags = {entry.endpoint: entry.flags for entry in kernel.namespaces.content.values()}
    assert flags == {1: NamespaceFlag.NONE, 2: NamespaceFlag.NO_SOCKET_SERVICES | NamespaceFlag.SIDECAR}


def network_policy(name: str, **spec: Any) -> Change:
    source = PolicySource("NetworkPolicy", Name("blue", name), name, 1, {"spec": spec})
    return Change(Kind.NETWORK_POLICY, f"blue/{name}", source)


def address(text: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(text)


def test_nothing_is_written_before_the_whole_cluster_is_known(bench: Bench, kernel: FakeKernel) -> None:
    bench.tell(
        Change(Kind.NODE, "node-1", OWN),
        *(Synced(kind) for kind in Kind if kind != Kind.NETWORK_POLICY),
    )
    assert not bench.engine.ready
    assert not kernel.ipcache.content
    with pytest.raises(NotReadyError):
        bench.put(labelled(1, pod("a"), 300))
    assert not kernel.endpoints.content
    bench.tell(Synced(Kind.NETWORK_POLICY))
    assert bench.engine.wait_ready(5)


def test_nodes_become_addresses_ranges_and_peers_of_the_overlay(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    cache = kernel.ipcache.content
    assert cache[host_key(address("172.30.0.2"))].identity == 1
    assert cache[host_key(address("172.30.0.2"))].tunnel == UNSPECIFIED
    for text in ("172.30.0.3", "10.244.1.1"):
        assert (cache[host_key(address(text))].identity, cache[host_key(address(text))].tunnel) == (
            6,
            address("172.30.0.3"),
        )
    there = cache[prefix_key(ipaddress.IPv4Network("10.244.1.0/24"))]
    assert (there.identity, there.flags) == (0, CacheFlag.RANGE)
    services = cache[prefix_key(ipaddress.IPv4Network("10.96.0.0/16"))]
    assert services.flags == CacheFlag.SERVICE
    assert kernel.nodes.content[AddressKey(address=address("172.30.0.2"))].flags == NodeFlag.LOCAL
    assert kernel.nodes.content[AddressKey(address=address("172.30.0.3"))].flags == 0
    assert bench.ipam.capacity == 253
    assert bench.effects.nodes == ["node-1", "node-2"]
    bench.tell(Change(Kind.NODE, "node-2", None))
    assert AddressKey(address=address("172.30.0.3")) not in kernel.nodes.content
    assert host_key(address("10.244.1.1")) not in cache


def test_a_new_endpoint_has_its_policy_before_its_address(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    seen: list[bool] = []
    kernel.endpoints.before_write = lambda: seen.append(
        1 in kernel.policies.content and host_key(address("10.244.0.11")) in kernel.ipcache.content
    )
    bench.put(labelled(1, pod("a"), 300))
    assert seen == [True]
    rules = {entry.rule for entry in kernel.policies.content[1].values()}
    assert rules == {HOST_RULE, *OPEN_RULES.values()}


def test_an_endpoint_that_goes_loses_its_address_before_its_policy(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    bench.put(labelled(1, pod("a"), 300))
    seen: list[bool] = []
    kernel.endpoints.before_write = lambda: seen.append(1 in kernel.policies.content)
    bench.engine.call(lambda: bench.engine.remove_endpoint(1))
    assert seen == [True]
    assert not kernel.policies.content
    assert not kernel.endpoints.content
    assert not kernel.namespaces.content
    assert host_key(address("10.244.0.11")) not in kernel.ipcache.content


def test_a_policy_moves_only_the_endpoints_that_it_selects(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    bench.put(labelled(1, pod("a", app="a"), 300))
    bench.put(labelled(2, pod("b", app="b"), 301))
    kernel.policies.replaced.clear()
    bench.tell(network_policy("close-a", podSelector={"matchLabels": {"app": "a"}}))
    assert kernel.policies.replaced == [{1}]
    assert {e.rule for e in kernel.policies.content[1].values()} == {HOST_RULE, *OPEN_RULES.values()} - {
        OPEN_RULES[next(d for d in OPEN_RULES if d == "ingress")]
    }
    assert bench.effects.moved[-1] == {1}
    kernel.policies.replaced.clear()
    bench.tell(network_policy("close-a", podSelector={"matchLabels": {"app": "a"}}))
    assert kernel.policies.replaced == [], "the same policy again moves nothing"


def test_a_new_identity_opens_what_a_policy_has_for_it(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    bench.put(labelled(1, pod("a", app="a"), 300))
    allow = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}
    bench.tell(network_policy("p", podSelector={}, ingress=[allow]))
    before = set(kernel.policies.content[1])
    friend = identity_labels(pod("f", app="friend"), BLUE)
    bench.tell(Change(Kind.IDENTITY, "400", Identity(400, friend)))
    assert {key.identity for key in set(kernel.policies.content[1]) - before} == {400}
    bench.tell(Change(Kind.IDENTITY, "400", None))
    assert set(kernel.policies.content[1]) == before


def test_pods_of_other_nodes_are_known_by_their_endpoints(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    remote = Endpoint(Name("blue", "r"), "u", 500, ("10.244.1.9",), "172.30.0.3")
    bench.tell(Change(Kind.ENDPOINT, "blue/r", remote))
    entry = kernel.ipcache.content[host_key(address("10.244.1.9"))]
    assert (entry.identity, entry.tunnel) == (500, address("172.30.0.3"))
    bench.tell(Change(Kind.ENDPOINT, "blue/r", dataclasses.replace(remote, identity=501)))
    assert kernel.ipcache.content[host_key(address("10.244.1.9"))].identity == 501
    assert bench.effects.renamed == {address("10.244.1.9"): 501}
    bench.tell(Change(Kind.ENDPOINT, "blue/r", None))
    assert host_key(address("10.244.1.9")) not in kernel.ipcache.content


def test_changed_labels_ask_for_another_identity(bench: Bench) -> None:
    bench.complete(Change(Kind.POD, "blue/a", pod("a", app="a")))
    bench.put(labelled(1, pod("a", app="a"), 300))
    assert not bench.effects.wanted
    bench.tell(Change(Kind.POD, "blue/a", pod("a", app="b")))
    assert [(number, labels["k8s:app"]) for number, labels in bench.effects.wanted] == [(1, "b")]
    bench.tell(Change(Kind.NAMESPACE, "blue", Namespace("blue", {"team": "x"})))
    assert bench.effects.wanted[-1][1]["k8s:io.cilium.k8s.namespace.labels.team"] == "x"


def test_a_successor_of_the_same_name_does_not_relabel_the_old_sandbox(bench: Bench) -> None:
    bench.complete(Change(Kind.POD, "blue/a", pod("a", app="a")))
    bench.put(labelled(1, pod("a", app="a"), 300))
    bench.tell(Change(Kind.POD, "blue/a", dataclasses.replace(pod("a", app="z"), uid="successor")))
    assert not bench.effects.wanted


def test_a_restart_with_the_same_cluster_writes_nothing(
    bench: Bench, tmp_path: Path, kernel: FakeKernel
) -> None:
    pods = [Change(Kind.POD, f"blue/{name}", pod(name, app=name)) for name in "ab"]
    identities = [
        Change(Kind.IDENTITY, str(number), Identity(number, identity_labels(pod(name, app=name), BLUE)))
        for number, name in ((300, "a"), (301, "b"))
    ]
    block = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]}
    policy = network_policy("p", podSelector={}, policyTypes=["Egress"], egress=[block])
    bench.complete(*pods, *identities, policy)
    bench.put(labelled(1, pod("a", app="a"), 300))
    bench.put(labelled(2, pod("b", app="b"), 301))
    bench.engine.stop()
    maps = (kernel.endpoints, kernel.ipcache, kernel.nodes, kernel.namespaces)
    writes = [table.writes for table in maps]
    revisions = dict(kernel.policies.revisions)
    again = Bench(tmp_path, kernel, [local(1, pod("a"), 300), local(2, pod("b"), 301)])
    again.complete(*pods, *identities, policy)
    again.tell()
    again.engine.stop()
    assert [table.writes for table in maps] == writes
    assert kernel.policies.revisions == revisions


def test_a_restored_endpoint_whose_identity_nobody_knows_is_closed(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    bench = Bench(tmp_path, kernel, [local(1, pod("a"), 300)])
    bench.complete()
    bench.tell()
    assert kernel.policies.content[1] == {}
    known = Identity(300, identity_labels(pod("a"), BLUE))
    bench.tell(Change(Kind.IDENTITY, "300", known))
    assert kernel.policies.content[1]
    bench.engine.stop()


def test_what_a_dead_agent_left_behind_is_taken_away(tmp_path: Path, kernel: FakeKernel) -> None:
    first = Bench(tmp_path, kernel)
    first.complete()
    first.put(labelled(1, pod("a"), 300))
    first.engine.stop()
    second = Bench(tmp_path, kernel)
    second.complete()
    second.tell()
    second.engine.stop()
    assert not kernel.endpoints.content
    assert not kernel.policies.content
    assert host_key(address("10.244.0.11")) not in kernel.ipcache.content


def test_a_policy_that_does_not_fit_closes_its_endpoint_and_is_tried_again(
    bench: Bench, kernel: FakeKernel
) -> None:
    bench.complete()
    bench.put(labelled(1, pod("a", app="a"), 300))
    kernel.policies.room = 1
    bench.engine.submit([network_policy("p", podSelector={}, ingress=[{"ports": [{"port": 80}]}])])
    with pytest.raises(NotReadyError, match="policies"):
        bench.engine.call(lambda: None)
    assert kernel.policies.content[1] == {}
    assert bench.engine.table_faults["policies"] == 1
    assert bench.effects.failed == ["policies"]
    kernel.policies.room = 100
    bench.tell()
    assert len(kernel.policies.content[1]) > 1


def test_an_endpoint_that_does_not_fit_fails_its_add(bench: Bench, kernel: FakeKernel) -> None:
    bench.complete()
    kernel.endpoints.room = 0
    with pytest.raises(NotReadyError, match="endpoints"):
        bench.put(labelled(1, pod("a"), 300))


def test_an_unreadable_policy_is_reported_with_its_faults(bench: Bench) -> None:
    bench.complete()
    bench.tell(network_policy("p", podSelector={}, ingress=[{"from": [{}]}]))
    assert [str(fault.path) for fault in bench.effects.read[-1].faults] == ["spec.ingress[0].from[0]"]


def test_pods_that_a_range_tells_apart_get_identities_of_their_own(bench: Bench) -> None:
    bench.complete(Change(Kind.POD, "blue/a", pod("a", app="a")))
    bench.put(labelled(1, pod("a", app="a"), 300))
    block = {"from": [{"ipBlock": {"cidr": "10.244.0.11/32"}}]}
    bench.tell(network_policy("p", podSelector={}, ingress=[block]))
    assert bench.effects.wanted[-1][1]["cidr:10.244.0.11/32"] == ""
    bench.tell(Change(Kind.NETWORK_POLICY, "blue/p", None))
    wide = {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    count = len(bench.effects.wanted)
    bench.tell(network_policy("q", podSelector={}, ingress=[wide]))
    assert len(bench.effects.wanted) == count, "a range that holds all pods tells none apart"


def test_labels_that_pretend_to_be_an_agents_are_left_out_and_counted(bench: Bench) -> None:
    forging = pod("a", **{"app": "a", "io.kubernetes.pod.namespace": "red"})
    bench.complete(Change(Kind.POD, "blue/a", forging))
    assert bench.engine.forging == {"blue/a": ["io.kubernetes.pod.namespace"]}
    bench.put(labelled(1, forging, 300))
    labels = bench.engine.local[1].labels or {}
    assert labels["k8s:io.kubernetes.pod.namespace"] == "blue"
    bench.tell(Change(Kind.POD, "blue/a", None))
    assert not bench.engine.forging

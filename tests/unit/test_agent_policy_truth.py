"""The compiled policy tries give, for every connection, the verdict of the plain truth table."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.addresses import prefix_key
from agent.identity.labels import address_labels, identity_labels
from agent.identity.reserved import FIRST_POD_IDENTITY, Reserved
from agent.model.objects import Identity, Name, Namespace, Pod, PolicySource, Protocol
from agent.policy.entries import Entries, entries
from agent.policy.repository import Repository, parse
from datapath.constants import Direction, Verdict
from datapath.tables import PrefixKey
from tests.policy_truth import Peer, Policy, allowed
from tests.sizes import SIZES

PODS_RANGE = ipaddress.IPv4Network("10.244.0.0/16")
NAMESPACES = {"blue": {"team": "b"}, "red": {"team": "r", "env": "prod"}}
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
PORTS = (1, 79, 80, 81, 443, 8079, 8080, 8087, 8088, 65535)
OUTSIDE = ("192.0.2.1", "192.0.2.77", "198.51.100.9", "203.0.113.200")


def pod(
    index: int,
    namespace: str,
    labels: dict[str, str],
    ports: dict[tuple[str, str], int],
    service_account: str | None = None,
) -> Peer:
    return Peer(
        kind="pod",
        address=f"10.244.{1 + index % 2}.{10 + index}",
        namespace=namespace,
        labels=labels,
        namespace_labels=NAMESPACES[namespace],
        service_account=service_account or ("default", "robot")[index % 2],
        ports=ports,
    )


PEERS = [
    pod(0, "blue", {"app": "a"}, {("web", "TCP"): 80, ("dns", "UDP"): 53}),
    pod(1, "blue", {"app": "b"}, {("web", "TCP"): 8080}),
    pod(2, "blue", {"app": "a", "tier": "x"}, {}),
    pod(3, "red", {"app": "a"}, {("web", "TCP"): 443}),
    pod(4, "red", {"app": "c", "tier": "x"}, {}),
    # The same labels as pods 0 and 4: only rules for address ranges tell them apart.
    pod(5, "blue", {"app": "a"}, {("web", "TCP"): 80, ("dns", "UDP"): 53}, "default"),
    pod(6, "red", {"app": "c", "tier": "x"}, {}, "default"),
    Peer("host", "172.30.0.2"),
    Peer("remote-node", "172.30.0.3"),
    *(Peer("world", address) for address in OUTSIDE),
]

LABELS = {"app": ("a", "b", "z"), "tier": ("x", "y")}
NAMESPACE_LABELS = {"team": ("b", "r"), "env": ("prod",)}


def selectors(labels: dict[str, tuple[str, ...]], prefix: str = "") -> st.SearchStrategy[dict[str, Any]]:
    pairs = [(prefix + key, value) for key, values in labels.items() for value in values]
    match = st.lists(st.sampled_from(pairs), max_size=1).map(lambda found: {"matchLabels": dict(found)})
    expression = st.sampled_from(
        [
            {"key": prefix + key, "operator": operator, "values": [values[0]]}
            if operator in ("In", "NotIn")
            else {"key": prefix + key, "operator": operator}
            for key, values in labels.items()
            for operator in ("In", "NotIn", "Exists", "DoesNotExist")
        ]
    ).map(lambda found: {"matchExpressions": [found]})
    return st.one_of(st.just({}), match, expression)


NETWORKS = (
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.64/26",
    "192.0.2.77/32",
    "203.0.113.0/25",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.2.11/32",
    "172.30.0.0/24",
)


def blocks(networks: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    def holes(cidr: str) -> st.SearchStrategy[dict[str, Any]]:
        outer = ipaddress.ip_network(cidr)
        inner = [n for n in networks if ipaddress.ip_network(n).subnet_of(outer)]  # type: ignore[arg-type]
        return st.lists(st.sampled_from(inner), max_size=2, unique=True).map(
            lambda found: {"cidr": cidr, **({"except": found} if found else {})}
        )

    return st.sampled_from(networks).flatmap(holes)


ranges = st.sampled_from([(80, 80), (1, 65535), (79, 81), (8080, 8087), (81, 8079), (443, 443)])
kubernetes_ports = st.one_of(
    st.builds(lambda p: {"protocol": p}, st.sampled_from(list(PROTOCOLS))),
    st.builds(
        lambda p, r: {"protocol": p, "port": r[0], **({"endPort": r[1]} if r[1] > r[0] else {})},
        st.sampled_from(list(PROTOCOLS)),
        ranges,
    ),
    st.builds(
        lambda n, p: {"protocol": p, "port": n},
        st.sampled_from(["web", "dns"]),
        st.sampled_from(["TCP", "UDP"]),
    ),
    st.just({"port": 80}),
)
kubernetes_peers = st.one_of(
    st.builds(lambda s: {"podSelector": s}, selectors(LABELS)),
    st.builds(lambda s: {"namespaceSelector": s}, selectors(NAMESPACE_LABELS)),
    st.builds(
        lambda n, p: {"namespaceSelector": n, "podSelector": p},
        selectors(NAMESPACE_LABELS),
        selectors(LABELS),
    ),
    st.builds(lambda b: {"ipBlock": b}, blocks(NETWORKS)),
)


def kubernetes_rules(field: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    rule = st.fixed_dictionaries(
        {},
        optional={
            field: st.lists(kubernetes_peers, max_size=2),
            "ports": st.lists(kubernetes_ports, max_size=2),
        },
    )
    return st.lists(rule, max_size=2)


kubernetes_policies = st.builds(
    lambda namespace, spec: Policy("NetworkPolicy", namespace, spec),
    st.sampled_from(list(NAMESPACES)),
    st.fixed_dictionaries(
        {"podSelector": selectors(LABELS)},
        optional={
            "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
            "ingress": kubernetes_rules("from"),
            "egress": kubernetes_rules("to"),
        },
    ),
)

cilium_ports = st.one_of(
    st.builds(
        lambda p, r: {"protocol": p, "port": str(r[0]), "endPort": r[1]},
        st.sampled_from([*PROTOCOLS, "ANY"]),
        ranges,
    ),
    st.just({"port": "0"}),
    st.just({"port": "0", "protocol": "UDP"}),
    st.just({"port": "web"}),
)
cilium_selectors = st.one_of(
    selectors(LABELS),
    selectors(LABELS, "k8s:"),
    selectors({"io.kubernetes.pod.namespace": ("red", "blue")}, "k8s:"),
    selectors({"io.cilium.k8s.namespace.labels.team": ("r",)}),
    selectors({"io.cilium.k8s.policy.serviceaccount": ("robot",)}, "any:"),
)


def cilium_rules(prefix: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    peers = st.one_of(
        st.just({}),
        st.builds(lambda s: {f"{prefix}Endpoints": s}, st.lists(cilium_selectors, max_size=2)),
        st.builds(
            lambda e: {f"{prefix}Entities": [e]},
            st.sampled_from(["all", "world", "cluster", "host", "remote-node"]),
        ),
        st.builds(lambda c: {f"{prefix}CIDR": c}, st.lists(st.sampled_from(NETWORKS), max_size=2)),
        st.builds(lambda b: {f"{prefix}CIDRSet": b}, st.lists(blocks(NETWORKS), max_size=2)),
    )
    ports = st.one_of(
        st.just({}),
        st.builds(lambda p: {"toPorts": [{"ports": p}]}, st.lists(cilium_ports, min_size=1, max_size=2)),
    )
    return st.lists(st.builds(lambda a, b: {**a, **b}, peers, ports), max_size=2)


cilium_policies = st.builds(
    lambda namespace, spec: Policy(
        "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy", namespace, spec
    ),
    st.sampled_from([*NAMESPACES, ""]),
    st.fixed_dictionaries(
        {"endpointSelector": cilium_selectors},
        optional={
            "ingress": cilium_rules("from"),
            "egress": cilium_rules("to"),
            "ingressDeny": cilium_rules("from"),
            "egressDeny": cilium_rules("to"),
        },
    ),
)


class Node:
    """The agent's pure part, fed with the peers above, and the kernel's look-ups done by hand."""

    def __init__(self) -> None:
        self.repository = Repository([PODS_RANGE])
        self.identities: dict[str, int] = {}
        self.repository.put_own_node([p.address for p in PEERS if p.kind == "host"])
        self.repository.put_nodes([p.address for p in PEERS if p.kind == "remote-node"])
        self.numbers: dict[frozenset[tuple[str, str]], int] = {}
        self.relabel()

    def relabel(self) -> set[str]:
        """Give each pod the identity of its labels, as the agents do after each change."""
        concerned: set[Hashable] = set()
        splitting = self.repository.splitting_networks()
        for peer in PEERS:
            if peer.kind != "pod":
                continue
            thing = Pod(Name(peer.namespace, peer.address), "u", "n", peer.labels, peer.service_account)
            namespace = Namespace(peer.namespace, peer.namespace_labels)
            labels = identity_labels(thing, namespace, address_labels(peer.address, splitting))
            number = self.numbers.setdefault(
                frozenset(labels.items()), FIRST_POD_IDENTITY + len(self.numbers)
            )
            ports = tuple((n, Protocol(p), one) for (n, p), one in peer.ports.items())
            if self.identities.get(peer.address) != number:
                self.identities[peer.address] = number
                self.repository.put_endpoint(peer.address, labels, ports)
                concerned.add(peer.address)
            concerned |= self.repository.put_identity(number, Identity(number, labels))
            concerned |= self.repository.put_holder(peer.address, number, [peer.address], ports)
        return {str(key) for key in concerned}

    def put(self, index: int, policy: Policy | None) -> set[str]:
        key = ("any", str(index))
        if policy is None:
            return {str(k) for k in self.repository.put_policy(key, None)} | self.relabel()
        source = PolicySource(
            policy.kind, Name(policy.namespace, f"p{index}"), str(index), 1, {"spec": policy.spec}
        )
        parsed = parse(source)
        assert parsed.valid, parsed.faults
        return {str(k) for k in self.repository.put_policy(key, parsed)} | self.relabel()

    def identity_of(self, peer: Peer) -> int:
        if peer.kind == "pod":
            return self.identities[peer.address]
        if peer.kind in ("host", "remote-node"):
            return int(Reserved.HOST if peer.kind == "host" else Reserved.REMOTE_NODE)
        cache = {prefix_key(n): number for n, number in self.repository.ranges.in_use().items()}
        return longest(cache, ipaddress.IPv4Address(peer.address))


def longest(cache: dict[PrefixKey, int], address: ipaddress.IPv4Address) -> int:
    """What the trie `ipcache` finds for an address; the world where nothing holds it."""
    holding = [key for key in cache if address in ipaddress.ip_network((int(key.address), key.prefix - 96))]
    return cache[max(holding, key=lambda key: key.prefix)] if holding else int(Reserved.WORLD)


class Tries:
    """An endpoint's policy trie, looked up as the kernel does it."""

    def __init__(self, compiled: Entries) -> None:
        self.compiled = compiled
        self._rows: dict[tuple[int, int], list[tuple[int, int, int, Verdict]]] = {}
        for key, entry in compiled.items():
            row = (key.prefix, key.protocol, key.port, Verdict(entry.verdict))
            self._rows.setdefault((key.identity, key.direction), []).append(row)
        for rows in self._rows.values():
            rows.sort(key=lambda row: -row[0])

    def look_up(self, identity: int, direction: Direction, protocol: int, port: int) -> Verdict | None:
        """One look-up: the longest key that matches."""
        for prefix, wanted, first, verdict in self._rows.get((identity, direction), ()):
            if prefix >= 48 and wanted != protocol:
                continue
            if prefix > 48 and first >> (64 - prefix) != port >> (64 - prefix):
                continue
            return verdict
        return None

    def allows(self, identity: int, direction: Direction, protocol: int, port: int) -> bool:
        """The program's decision: two look-ups, a denial from either wins, nothing is a denial."""
        found = {self.look_up(i, direction, protocol, port) for i in (identity, 0)}
        return Verdict.DENY not in found and Verdict.ALLOW in found


Compiled = dict[str, Tries]


def verdict(node: Node, compiled: Compiled, ends: tuple[Peer, Peer], protocol: str, port: int) -> bool:
    """Whether both ends' tries let a connection from the first to the second through."""
    source, target = ends
    for subject, peer, direction in (
        (source, target, Direction.EGRESS),
        (target, source, Direction.INGRESS),
    ):
        if subject.kind != "pod" or (direction == Direction.INGRESS and peer.kind == "host"):
            continue  # from its own node everything passes, before policy is asked
        identity = node.identity_of(peer)
        if not compiled[subject.address].allows(identity, direction, PROTOCOLS[protocol], port):
            return False
    return True


def compile_all(node: Node) -> Compiled:
    pods = (peer.address for peer in PEERS if peer.kind == "pod")
    return {address: Tries(entries(node.repository.compile(address))) for address in pods}


def check(node: Node, compiled: Compiled, policies: list[Policy]) -> None:
    for source in PEERS:
        for target in PEERS:
            if source is target or "pod" not in (source.kind, target.kind):
                continue
            for protocol in PROTOCOLS:
                for port in PORTS:
                    expected = allowed(policies, source, target, protocol, port)
                    found = verdict(node, compiled, (source, target), protocol, port)
                    assert found == expected, (source, target, protocol, port, policies)


SETTINGS = settings(
    max_examples=SIZES.policy_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def from_block(**block: Any) -> Policy:
    return Policy("NetworkPolicy", "blue", {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]})


@SETTINGS
@given(st.lists(kubernetes_policies, max_size=4))
@example([from_block(cidr="10.244.1.0/24")])
@example([from_block(cidr="0.0.0.0/0", **{"except": ["10.244.2.11/32"]})])
@example([from_block(cidr="192.0.2.0/24", **{"except": ["192.0.2.0/24"]})])
def test_network_policies_mean_what_the_truth_table_says(policies: list[Policy]) -> None:
    node = Node()
    for index, policy in enumerate(policies):
        node.put(index, policy)
    check(node, compile_all(node), policies)


@SETTINGS
@given(st.lists(st.one_of(cilium_policies, kubernetes_policies), max_size=4))
def test_cilium_policies_beside_network_policies_mean_what_the_truth_table_says(
    policies: list[Policy],
) -> None:
    node = Node()
    for index, policy in enumerate(policies):
        node.put(index, policy)
    check(node, compile_all(node), policies)


@SETTINGS
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.one_of(st.none(), cilium_policies, kubernetes_policies)),
        min_size=1,
        max_size=8,
    )
)
def test_compiling_only_what_a_change_concerns_ends_where_compiling_everything_does(
    changes: list[tuple[int, Policy | None]],
) -> None:
    node = Node()
    compiled = compile_all(node)
    for index, policy in changes:
        concerned = node.put(index, policy)
        concerned |= {str(k) for k in node.repository.forget_unused_ranges()}
        for address in concerned:
            compiled[address] = Tries(entries(node.repository.compile(address)))
    everything = compile_all(node)
    assert {a: t.compiled for a, t in compiled.items()} == {a: t.compiled for a, t in everything.items()}

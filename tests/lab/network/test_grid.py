"""A generated grid: sets of policies, tried by real connections between real pods of both nodes.

Every pair of pods, and every node to every pod, on every port, by TCP and UDP, is held against the plain
truth table. The policies come from the strategies that also hold the compiler against it.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab.cluster import Cluster
from tests.lab.network.town import NAMESPACES, PORTS, Town
from tests.lab.waiting import until
from tests.policy_truth import Peer, Policy, allowed
from tests.sizes import SIZES
from tests.unit.test_agent_policy_truth import cilium_policies, kubernetes_policies

KINDS = {
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
}
SETTLE_SECONDS = 20


class Grid:
    """What the strategies say of an imagined cluster, said of this one."""

    def __init__(self, town: Town, cluster: Cluster) -> None:
        self.town, self.cluster = town, cluster
        ranges = {node.name: str(node.pod_range) for node in cluster.nodes()}
        first, second = (node.name for node in town.lab.nodes[:2])
        self.here = {
            "10.244.0.0/16": town.lab.pods_range,
            "10.244.1.0/24": ranges[first],
            "10.244.2.11/32": f"{town.address['r1']}/32",
            "172.30.0.0/24": town.lab.nodes_range,
        }
        assert ranges[first] != ranges[second]

    def place(self, policy: Policy) -> Policy:
        """`policy` with this lab's address ranges; one of the whole cluster keeps to the town."""
        spec = self._placed(policy.spec)
        if policy.kind == "CiliumClusterwideNetworkPolicy":
            subjects = spec["endpointSelector"]
            ours = {"key": "io.kubernetes.pod.namespace", "operator": "In", "values": list(NAMESPACES)}
            subjects["matchExpressions"] = [*subjects.get("matchExpressions", []), ours]
        return Policy(policy.kind, policy.namespace, spec)

    def _placed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._placed(one) for one in value]
        if not isinstance(value, dict):
            return self.here.get(value, value) if isinstance(value, str) else value
        placed = {key: self._placed(one) for key, one in value.items()}
        if "cidr" in placed:
            # The API server takes exceptions that lie within the range and are smaller alone.
            outer = ipaddress.ip_network(placed["cidr"])
            inner = [ipaddress.ip_network(text) for text in placed.pop("except", [])]
            kept = [str(net) for net in inner if net != outer and net.subnet_of(outer)]  # type: ignore[arg-type]
            placed |= {"except": kept} if kept else {}
        return placed

    def apply(self, policies: list[Policy]) -> None:
        """Replace all policies of the town by these."""
        documents = [
            {
                "apiVersion": KINDS[policy.kind],
                "kind": policy.kind,
                "metadata": {
                    "name": f"grid-{number}",
                    **({"namespace": policy.namespace} if policy.namespace else {}),
                },
                "spec": policy.spec,
            }
            for number, policy in enumerate(policies)
        ]
        self.clear()
        if documents:
            bundle = {"apiVersion": "v1", "kind": "List", "items": documents}
            self.cluster.kubectl("create", "-f", "-", stdin=json.dumps(bundle))

    def clear(self) -> None:
        for namespace in NAMESPACES:
            self.cluster.kubectl("delete", "networkpolicy,cnp", "--all", "-n", namespace)
        self.cluster.kubectl("delete", "ccnp", "--all")

    def peer(self, name: str, seen_from: str) -> Peer:
        """A resident or a node as the truth table knows it; a node is remote to pods of other nodes."""
        town = self.town
        if name in town.residents:
            one = town.residents[name]
            return Peer(
                "pod",
                town.address[name],
                one.namespace,
                one.labels,
                {**NAMESPACES[one.namespace], "kubernetes.io/metadata.name": one.namespace},
                one.account,
                one.ports,
            )
        own = town.residents[seen_from].node.name == name
        return Peer("host" if own else "remote-node", town.lab.node(name).address)

    def wrong(self, policies: list[Policy]) -> list[str]:
        """Every connection whose outcome is not what the truth table says."""
        town = self.town
        clients = [*town.residents, *(node.name for node in town.lab.nodes)]
        wanted = {
            client: [
                (protocol, town.address[server], port)
                for server in town.residents
                if server != client
                for port in PORTS
                for protocol in ("tcp", "udp")
            ]
            for client in clients
        }
        names = {address: name for name, address in town.address.items()}
        found = []
        for client, answers in town.probe_all(wanted).items():
            for (protocol, address, port), answer in zip(wanted[client], answers, strict=True):
                server = names[address]
                ends = self.peer(client, server), self.peer(server, server)
                expected = allowed(policies, *ends, protocol.upper(), port)
                passed = answer.startswith(f"{server} ")
                if passed != expected or not (passed or answer == "ETIMEDOUT"):
                    found.append(f"{client} -> {server} {protocol} {port}: {answer}, allowed: {expected}")
        return found


def test_real_connections_are_what_the_truth_table_says(town: Town, cluster: Cluster) -> None:
    grid = Grid(town, cluster)

    @settings(
        max_examples=SIZES.grid_examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.one_of(kubernetes_policies, cilium_policies), min_size=2, max_size=5))
    def tried(policies: list[Policy]) -> None:
        placed = [grid.place(policy) for policy in policies]
        grid.apply(placed)
        wrong: list[str] = []

        def right() -> bool:
            wrong[:] = grid.wrong(placed)
            return not wrong

        try:
            until(right, "the grid becomes what the truth table says", SETTLE_SECONDS)
            assert right(), "and stays so"
        except AssertionError as fault:
            raise AssertionError(
                "\n".join([str(fault), *wrong[:20], json.dumps(placed, default=vars)])
            ) from None

    try:
        tried()
    finally:
        grid.clear()

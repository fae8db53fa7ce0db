"""Who tries to be somebody else, or to get out, on a real lab: refused, and counted under its reason."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.test_new_pods import knocker, policy
from tests.lab.network.town import Town, agents_ready, ask, came, reason, server, underpass
from tests.lab.pods import Pods
from tests.lab.waiting import until

PORT = 8080
OVERLAY_PORT = 8472
GATEWAY = "169.254.1.1"
SEND = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0)); "
    "[s.sendto(bytes.fromhex(sys.argv[4]), (sys.argv[2], int(sys.argv[3]))) for _ in range(3)]"
)


def send(to: str, port: int, data: bytes = b"x", source: str = "") -> list[str]:
    """A command that sends a datagram three times."""
    return ["python3", "-c", SEND, source, to, str(port), data.hex()]


# A pod that may change its own network


@pytest.fixture
def prisoner(lab: Rendered, space: Callable[[str], Pods], town: Town) -> Pods:
    """A pod `p` with NET_ADMIN on the first node, whose egress is closed."""
    pods = space("prison")
    rights = {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}
    pods.run(
        "p",
        lab.nodes[0].name,
        labels={"role": "mute"},
        containers=[server(pods, [PORT], securityContext=rights)],
    )
    pods.ready()
    pods.apply(policy("mute", "mute", policyTypes=["Egress"]))
    until(lambda: pods.talk("p", town.address["r3"], PORT, limit=1) == "ETIMEDOUT", "its egress is closed")
    return pods


def inside(pods: Pods, *commands: str) -> None:
    """Run shell commands in the prisoner; each must work: it has the right to."""
    done = pods.exec("p", ["sh", "-ec", "\n".join(commands)])
    assert done.status == 0, done.stderr


def test_a_pod_with_net_admin_stays_who_it_is(
    lab: Rendered, town: Town, prisoner: Pods, evidence: Evidence
) -> None:
    """Another's address, another MAC, VXLAN to nodes, its own tc and links: nothing leaves, all is counted"""
    node, target = lab.nodes[0].name, town.address["r3"]
    mine = prisoner.address("p")
    before = [len(town.came("r3", PORT)), len(town.came("r4", PORT))]
    with reason(lab, node, "policy-default"):
        prisoner.exec("p", send(target, PORT))
    for stolen in (town.address["r0"], town.address["r4"], lab.nodes[0].address, lab.nodes[1].address):
        inside(prisoner, f"ip addr add {stolen}/32 dev eth0")
        with reason(lab, node, "source-spoofed"):
            for to in (target, town.address["r4"]):
                assert prisoner.exec("p", send(to, PORT, source=stolen)).status == 0
        inside(prisoner, f"ip addr del {stolen}/32 dev eth0")
    inside(
        prisoner, "cat /sys/class/net/eth0/address >/tmp/mac", "ip link set eth0 address 02:00:00:00:00:01"
    )
    with reason(lab, node, "mac-spoofed"):
        assert prisoner.exec("p", send(target, PORT)).status == 0
    inside(prisoner, "ip link set eth0 address $(cat /tmp/mac)")
    for other in lab.nodes:
        with reason(lab, node, "pod-sent-overlay"):
            assert prisoner.exec("p", send(other.address, OVERLAY_PORT)).status == 0
    inside(
        prisoner,
        "tc qdisc replace dev eth0 clsact; tc qdisc del dev eth0 clsact",
        "ip link set eth0 down; ip link set eth0 up",
        f"ip route replace {GATEWAY}/32 dev eth0 scope link; ip route replace default via {GATEWAY} dev eth0",
    )
    with reason(lab, node, "policy-default"):
        assert prisoner.talk("p", target, PORT, limit=1) == "ETIMEDOUT"
    assert [len(town.came("r3", PORT)), len(town.came("r4", PORT))] == before
    evidence(f"{mine}: 4 addresses, a MAC, VXLAN to {len(lab.nodes)} nodes, links and tc of its own")
    assert town.probe("r0", [("tcp", mine, PORT)]) == [f"p {town.address['r0']}"], "its network works"


# VXLAN that should not be


def frame(source: str, target: str, identity: int) -> bytes:
    """A VXLAN packet as a node sends it."""
    inner = Ether() / IP(src=source, dst=target) / UDP(sport=4000, dport=PORT) / Raw(b"x")
    return bytes(VXLAN(vni=identity, flags="Instance") / inner)


def identity_of(lab: Rendered, town: Town, name: str) -> int:
    """The identity of a resident, as its node has it."""
    listed = underpass(lab, town.residents[name].node.name, "endpoints")
    return next(int(e["identity"]) for e in listed if e["address"] == town.address[name])


def test_vxlan_from_who_is_no_node_is_refused(lab: Rendered, town: Town) -> None:
    """This machine shares the nodes' network and sends what a node would send"""
    before = len(town.came("r0", PORT))
    data = frame(town.address["r4"], town.address["r0"], identity_of(lab, town, "r4"))
    with (
        reason(lab, lab.nodes[0].name, "overlay-not-node"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end,
    ):
        end.sendto(data, (lab.nodes[0].address, OVERLAY_PORT))
    assert len(town.came("r0", PORT)) == before


@pytest.mark.parametrize(
    ("source", "identity", "word"),
    [("r4", 1, "overlay-identity"), ("r4", None, "overlay-reserved"), ("r3", 0, "overlay-source")],
)
def test_a_node_cannot_lie_about_its_pods(
    lab: Rendered, town: Town, source: str, identity: int | None, word: str
) -> None:
    """An identity that is not the inner source's, a reserved one, a pod of another node: refused"""
    first, second = lab.nodes[:2]
    before = len(town.came("r0", PORT))
    number = 1 if identity is None else identity_of(lab, town, source) + identity
    data = frame(town.address[source], town.address["r0"], number)
    with reason(lab, first.name, word):
        ask(lab, second.name, send(first.address, OVERLAY_PORT, data))
    assert len(town.came("r0", PORT)) == before
    honest = frame(town.address["r4"], town.address["r0"], identity_of(lab, town, "r4"))
    ask(lab, second.name, send(first.address, OVERLAY_PORT, honest))
    until(lambda: len(town.came("r0", PORT)) > before, "what is true arrives by the same way", 5)


# Identities


def test_labels_that_forge_reserved_keys_forge_nothing(
    lab: Rendered, policies: Town, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """A pod that labels itself with another namespace or account stays what it is; its node says so"""
    town, pods = policies, space("forger")
    node = lab.nodes[0].name
    pods.run(
        "f",
        node,
        labels={
            "io.kubernetes.pod.namespace": "red",
            "io.cilium.k8s.policy.serviceaccount": "robot",
            "io.cilium.k8s.namespace.labels.env": "prod",
        },
    )
    pods.ready()
    target = ("tcp", town.address["r4"], PORT)
    for peers in (
        {"k8s:io.kubernetes.pod.namespace": "red"},
        {"io.cilium.k8s.namespace.labels.env": "prod"},
        {"k8s:io.kubernetes.pod.namespace": "red", "io.cilium.k8s.policy.serviceaccount": "robot"},
    ):
        town.spaces["red"].apply(_friends(peers))
        until(lambda: town.probe("r0", [target], 0.5) == ["ETIMEDOUT"], "strangers are kept out")
        until(lambda: town.probe("r3", [target]) == [f"r4 {town.address['r3']}"], "friends get in")
        with reason(lab, town.residents["r4"].node.name, "policy-default"):
            assert pods.talk("f", town.address["r4"], PORT, limit=1) == "ETIMEDOUT"
    forged = underpass(lab, node, "status")["forged_labels"]
    evidence(forged)
    assert len(forged["forger/f"]) == 3
    metrics = ask(lab, node, ["curl", "-sf", "http://127.0.0.1:9964/metrics"])
    assert "underpass_pods_with_forged_labels 1.0" in metrics


def _friends(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "friends"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "c"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": labels}]}],
        },
    }


def book(lab: Rendered, node: str) -> dict[str, dict[str, Any]]:
    """A node's address book by address."""
    held = json.loads(ask(lab, node, ["cat", "/var/lib/underpass/addresses.json"]))["attachments"]
    return {one["address"]: one for one in held}


def test_a_deleted_namespace_leaves_nothing_behind(
    lab: Rendered, cluster: Cluster, town: Town, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """Pods, policies, identities, addresses: gone with the namespace, and packets to them say so"""
    pods = space("doomed")
    for number, node in enumerate(lab.nodes[:2]):
        pods.run(f"d{number}", node.name, containers=[server(pods, [PORT])])
    pods.ready()
    pods.apply(policy("closed", "none", policyTypes=["Ingress", "Egress"]))
    where = {node.name: pods.address(f"d{number}") for number, node in enumerate(lab.nodes[:2])}
    for address in where.values():
        assert town.probe("r0", [("tcp", address, PORT)])[0].startswith("d")
    pods.remove()
    told = dict(zip(where, ("no-endpoint", "identity-unknown"), strict=True))
    for name, address in where.items():
        until(
            lambda n=name: not [e for e in underpass(lab, n, "endpoints") if e["pod"].startswith("doomed/")],  # type: ignore[misc]
            f"{name} has none of its endpoints",
            20,
        )
        until(lambda n=name, a=address: a not in book(lab, n), f"{address} is free", 10)  # type: ignore[misc]
        assert not [p for p in underpass(lab, name, "policy", "get") if p["name"].startswith("doomed/")]
        with reason(lab, lab.nodes[0].name, told[name]):
            town.probe("r0", [("udp", address, PORT)], 0.5)
    left = cluster.kubectl("get", "cep", "-A", "-o", "name").stdout
    assert not [line for line in left.splitlines() if line.endswith(("/d0", "/d1"))]
    evidence(f"{len(where)} pods")


def test_an_address_that_is_used_again_inherits_nothing(
    lab: Rendered, town: Town, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """A pod at the address (and of the name) of one that was let in is judged by its own labels"""
    pods = space("again")
    first, second = lab.nodes[:2]
    pods.run("closed", first.name, labels={"role": "closed"}, containers=[server(pods, [PORT])])
    pods.ready()
    friends = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
    pods.apply(policy("closed", "closed", policyTypes=["Ingress"], ingress=[{"from": friends}]))
    target = pods.address("closed")
    until(lambda: town.probe("r2", [("tcp", target, PORT)], 0.5) == ["ETIMEDOUT"], "the policy is there")

    pods.run("x", second.name, labels={"role": "friend"})
    pods.ready()
    address = pods.address("x")
    assert pods.talk("x", target, PORT) == f"closed {address}"
    pods.cluster.kubectl("delete", "pod", "x", "-n", "again", timeout=60)
    until(lambda: address not in book(lab, second.name), "the address is free", 20)
    # The next address to be given out is by chance that one.
    turn_back = (
        "import ipaddress, json, sys; p = '/var/lib/underpass/addresses.json'; d = json.load(open(p)); "
        "first = ipaddress.ip_network(d['ranges'][0])[2]; "
        "d['cursor'] = int(ipaddress.ip_address(sys.argv[1])) - int(first); "
        "json.dump(d, open(p, 'w'))"
    )
    ask(lab, second.name, ["systemctl", "stop", "underpass-agent"])
    ask(lab, second.name, ["python3", "-c", turn_back, address])
    ask(lab, second.name, ["systemctl", "start", "underpass-agent"])
    agents_ready(lab)
    pods.apply(knocker(pods, "x", second.name, "stranger", target))
    phase = ["get", "pod", "x", "-n", pods.namespace, "-o", "jsonpath={.status.phase}"]
    until(lambda: pods.cluster.kubectl(*phase).stdout == "Failed", "the second pod has tried", 60)
    assert pods.address("x") == address
    assert [peer for *_, peer in came(pods, "closed")].count(address) == 1, (
        "it got in by its predecessor's right"
    )
    evidence(address)

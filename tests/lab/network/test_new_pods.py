"""A new pod has no network before its policy is in the kernel."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.town import Town, agents_ready, ask, came, server
from tests.lab.pods import Pods
from tests.lab.waiting import until
from tests.sizes import SIZES

PORT = 8080
BATCH = 50
BATCH_SECONDS = 600
KNOCKERS = "role in (stranger, mute, friend)"  # one batch of them at a time
# The shell's own words: nothing is loaded or asked for before the first packet.
KNOCK = f"echo x >/dev/udp/$TO/{PORT}; echo x >/dev/tcp/$TO/{PORT}"


def knocker(pods: Pods, name: str, node: str, role: str, to: str) -> dict[str, Any]:
    """A pod that sends a datagram and connects to `to`, first of all, and ends."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"role": role}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "knock",
                    "image": pods.image,
                    "imagePullPolicy": "Never",
                    "env": [{"name": "TO", "value": to}],
                    "command": ["timeout", "2", "bash", "-c", KNOCK],
                }
            ],
        },
    }


def policy(name: str, role: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"role": role}}, **spec},
    }


@contextmanager
def restarting(lab: Rendered) -> Iterator[list[str]]:
    """Agents of all nodes are killed at random moments, once all are there again; the list tells which.

    On a slow machine agents that are killed sooner would start no pod at all.
    """
    over, killed, rng = threading.Event(), list[str](), random.Random(7)

    def body() -> None:
        while not over.wait(rng.uniform(2, 6)):
            killed.append(rng.choice(lab.nodes).name)
            ask(lab, killed[-1], ["systemctl", "kill", "--signal=KILL", "underpass-agent"])
            agents_ready(lab, BATCH_SECONDS)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
        agents_ready(lab)


def have_run(pods: Pods) -> bool:
    """Whether every pod of the batch has ended. The server sorts: this is asked while pods want the CPUs."""
    unfinished = "--field-selector=status.phase!=Failed,status.phase!=Succeeded"
    words = ["get", "pods", "-n", pods.namespace, "-l", KNOCKERS, unfinished, "-o", "name"]
    return not pods.cluster.kubectl(*words).stdout.strip()


def ended(pods: Pods) -> list[dict[str, Any]]:
    """The pods of the batch."""
    words = ["get", "pods", "-n", pods.namespace, "-l", KNOCKERS, "-o", "json"]
    return list(json.loads(pods.cluster.kubectl(*words).stdout)["items"])


def test_nobody_gets_through_before_policy_is_there(
    lab: Rendered, town: Town, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """Pods whose first instruction is a connect to a denied peer, also while agents restart: none through"""
    pods = space("early")
    pods.run("closed", lab.nodes[0].name, labels={"role": "closed"}, containers=[server(pods, [PORT])])
    pods.run("open", lab.nodes[0].name, labels={"role": "open"}, containers=[server(pods, [PORT])])
    pods.ready()
    friends = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
    pods.apply(
        policy("closed", "closed", policyTypes=["Ingress"], ingress=[{"from": friends}]),
        policy("mute", "mute", policyTypes=["Egress"]),
    )
    to = {name: pods.address(name) for name in ("closed", "open")}
    target = ("tcp", to["closed"], PORT)
    until(lambda: town.probe("r0", [target], 0.5) == ["ETIMEDOUT"], "the policy is there")

    seen: dict[str, str] = {}
    with restarting(lab) as killed:
        for start in range(0, SIZES.early_pods, BATCH):
            batch = []
            for number in range(start, min(start + BATCH, SIZES.early_pods)):
                node = lab.nodes[number % 2].name
                role, peer = (("stranger", "closed"), ("mute", "open"))[number // 2 % 2]
                batch.append(knocker(pods, f"k{number}", node, role, to[peer]))
            batch += [
                knocker(pods, f"friend-{start}-{node.name}", node.name, "friend", to["closed"])
                for node in lab.nodes
            ]
            names = [one["metadata"]["name"] for one in batch]
            # Of this batch alone: its strangers may have the addresses of friends of an earlier one.
            before = {server: len(came(pods, server)) for server in to}
            pods.apply(*batch)
            until(lambda: have_run(pods), "a batch of pods has run", BATCH_SECONDS, pause=1.0)
            for one in ended(pods):
                seen[one["metadata"]["name"]] = one["status"]["podIP"]
                assert one["metadata"]["labels"]["role"] == "friend" or one["status"]["phase"] == "Failed"
            friendly = {seen[name] for name in names if name.startswith("friend")}
            strangers = {seen[name] for name in names} - friendly
            arrived = {peer for server in to for _, _, peer in came(pods, server)[before[server] :]}
            assert not arrived & strangers, f"came through before the policy: {arrived & strangers}"
            assert arrived & friendly, "who is allowed gets through"
            pods.cluster.kubectl_wait("delete", "pods", "-n", pods.namespace, "-l", KNOCKERS, seconds=120)
    evidence(f"{SIZES.early_pods} pods, agents killed {len(killed)} times")
    assert killed
    assert len(seen) == SIZES.early_pods + 2 * -(-SIZES.early_pods // BATCH)

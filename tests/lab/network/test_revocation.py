"""A connection that is no longer allowed is reset at both ends, idle or not.

How soon is told as evidence and measured by `lab measure network policy`; no time decides here.
"""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.lab.conftest import Evidence
from tests.lab.network.town import Town, program
from tests.lab.waiting import until

PORT = 8080
CLIENT, SAME_NODE, OTHER_NODE = "r0", "r3", "r4"


def ended(town: Town, server: str) -> list[tuple[str, float]]:
    """How and when the connections of the client ended, as the server saw it."""
    lines = town.pods(server).exec(server, ["cat", "/tmp/ended"]).stdout.splitlines()
    found = [line.split() for line in lines]
    return [(how, float(when)) for peer, _, how, when in found if peer == town.address[CLIENT]]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_both_ends_of_a_revoked_connection_get_a_reset(
    policies: Town, direction: str, evidence: Evidence
) -> None:
    """Idle and busy connections, on one node and across two, end with ECONNRESET at client and server"""
    town = policies
    servers = {name: town.address[name] for name in (SAME_NODE, OTHER_NODE)}
    pods = town.pods(CLIENT)
    before = {name: len(ended(town, name)) for name in servers}
    command = program("hold", str(PORT), *servers.values())
    holding = subprocess.Popen(
        pods.cluster.argv(["exec", "-n", pods.namespace, CLIENT, "--", *command]),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holding.stdout
    assert holding.stdout.readline() == "held\n"
    subject = {"ingress": "red", "egress": "blue"}[direction]
    town.spaces[subject].apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "revoke"},
            "spec": {"podSelector": {}, "policyTypes": [direction.capitalize()]},
        }
    )
    applied = time.time()
    lines, _ = holding.communicate(timeout=60)
    ends = [(how, float(when)) for _, _, how, when in (line.split() for line in lines.splitlines())]
    for name, count in before.items():
        until(lambda n=name, c=count: len(ended(town, n)) == c + 2, f"{name} saw it", 5)  # type: ignore[misc]
        ends += ended(town, name)[count:]
    latest = max(when for _, when in ends) - applied
    evidence(f"{len(ends)} ends, the last {latest:.3f} s after kubectl had its answer")
    assert [how for how, _ in ends] == ["ECONNRESET"] * 8

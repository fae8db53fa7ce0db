"""Area policy: who may talk to whom, enforced; each denial with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.waiting import until

DENIED = "ETIMEDOUT"


def _policy(name: str, app: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, **spec},
    }


@pytest.fixture
def policies(pods: Pods) -> Iterator[Pods]:
    """The suite's pods; policies made by a test are gone after it."""
    yield pods
    pods.cluster.kubectl("delete", "networkpolicy", "--all", "-n", pods.namespace)
    until(lambda: pods.talk("a-0", pods.address("b-0"), limit=1) != DENIED, "traffic flows again")


def _settles(pods: Pods, client: str, server: str, allowed: bool, proto: str = "tcp") -> str:
    """Wait until `client` to `server` is as it should be; fails with the last answer."""

    def asked() -> str | None:
        answer = pods.talk(client, pods.address(server), proto=proto, limit=1)
        return answer if (answer != DENIED) == allowed else None

    return until(asked, f"{client} to {server} is {'allowed' if allowed else 'denied'}", 20)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_selected_pod_is_closed_by_default(policies: Pods, proto: str, evidence: Evidence) -> None:
    """A pod that a policy selects takes no connection that no rule allows; others stay open"""
    policies.apply(_policy("closed", "b-0", policyTypes=["Ingress"]))
    for client in ("a-0", "b-1"):
        evidence(f"{client}: {_settles(policies, client, 'b-0', False, proto)}")
        assert _settles(policies, client, "a-1", True, proto)


def test_rules_open_for_whom_they_name(policies: Pods, lab: Rendered, evidence: Evidence) -> None:
    """Of four clients, exactly those that a rule names by label get through"""
    rule = {
        "from": [{"podSelector": {"matchLabels": {"app": "a-0"}}}],
        "ports": [{"port": "web", "protocol": "TCP"}],
    }
    policies.apply(_policy("named", "b-0", ingress=[rule], policyTypes=["Ingress"]))
    seen = {client: _settles(policies, client, "b-0", client == "a-0") for client in ("a-0", "a-1", "b-1")}
    evidence(seen)
    assert _settles(policies, "a-0", "b-0", False, "udp") == DENIED


def test_egress_is_held_too(policies: Pods, evidence: Evidence) -> None:
    """A pod whose egress is limited reaches what its rules name and nothing else"""
    rule = {
        "to": [{"podSelector": {"matchLabels": {"app": "a-1"}}}],
        "ports": [{"port": SERVER_PORT, "protocol": "TCP"}],
    }
    policies.apply(_policy("out", "a-0", egress=[rule], policyTypes=["Egress"]))
    evidence(_settles(policies, "a-0", "b-0", False))
    assert _settles(policies, "a-0", "a-1", True)
    assert _settles(policies, "b-0", "a-0", True)


def test_an_address_range_with_an_exception(policies: Pods, lab: Rendered, evidence: Evidence) -> None:
    """ipBlock matches pods whose address lies in it, and not those in its exception"""
    block = {"cidr": lab.pods_range, "except": [f"{policies.address('a-1')}/32"]}
    policies.apply(_policy("block", "b-0", ingress=[{"from": [{"ipBlock": block}]}], policyTypes=["Ingress"]))
    evidence(_settles(policies, "a-1", "b-0", False))
    assert _settles(policies, "a-0", "b-0", True)


def test_a_grid_of_policies_means_what_it_says(policies: Pods, lab: Rendered, evidence: Evidence) -> None:
    """For each pair of pods, what gets through is what the plain reading of the policies says"""
    names = [f"{letter}-{number}" for letter in "ab" for number in range(2)]
    admits = {"a-0": {"b-0", "b-1"}, "b-1": {"a-0"}, "a-1": set[str]()}
    for server, clients in admits.items():
        peers = [{"podSelector": {"matchLabels": {"app": client}}} for client in sorted(clients)]
        rules = [{"from": peers}] if peers else []
        policies.apply(_policy(f"grid-{server}", server, ingress=rules, policyTypes=["Ingress"]))
    wrong = []
    for client, server in itertools.permutations(names, 2):
        expected = server not in admits or client in admits[server]
        try:
            _settles(policies, client, server, expected)
        except AssertionError as fault:
            wrong.append(str(fault))
    evidence(f"{len(names) * (len(names) - 1)} pairs")
    assert wrong == []

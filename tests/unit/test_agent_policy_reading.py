"""What cannot be enforced is named with its path, and closes what it was meant to close."""

from __future__ import annotations

from typing import Any

import pytest

from agent.model.objects import Name, PolicySource, Protocol
from agent.policy.compile import compile_endpoint
from agent.policy.repository import Repository, parse
from agent.policy.rules import Direction, Parsed, PortRange
from agent.policy.trace import judge
from agent.publish import documents

PODS: dict[str, str] = {"k8s:io.kubernetes.pod.namespace": "blue", "k8s:app": "a"}


def read(spec: dict[str, Any] | None, kind: str = "CiliumNetworkPolicy", **more: Any) -> Parsed:
    namespace = "" if "Clusterwide" in kind else "blue"
    document = {"spec": spec, **more} if spec is not None else dict(more)
    return parse(PolicySource(kind, Name(namespace, "p"), "u", 3, document))


def with_rule(**rule: Any) -> dict[str, Any]:
    return {"endpointSelector": {}, "ingress": [rule]}


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"toPorts": [{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]}, "toPorts[0].rules"),
        ({"toPorts": [{"serverNames": ["x"]}]}, "toPorts[0].serverNames"),
        ({"toPorts": [{"listener": {"name": "x"}}]}, "toPorts[0].listener"),
        ({"fromRequires": [{}]}, "fromRequires"),
        ({"fromNodes": [{"matchLabels": {"a": "b"}}]}, "fromNodes"),
        ({"fromGroups": [{"aws": {}}]}, "fromGroups"),
        ({"authentication": {"mode": "required"}}, "authentication"),
        ({"fromEndpoints": [{"matchLabels": {"fqdn:x": "y"}}]}, "fromEndpoints[0].matchLabels.fqdn:x"),
        ({"fromEndpoints": [{"matchFancy": {"a": "b"}}]}, "fromEndpoints[0].matchFancy"),
        ({"fromEntities": ["martians"]}, "fromEntities[0]"),
        ({"fromCIDR": ["nowhere"]}, "fromCIDR[0]"),
        ({"fromCIDRSet": [{"cidrGroupRef": "g"}]}, "fromCIDRSet[0].cidrGroupRef"),
        ({"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["x"]}]}, "fromCIDRSet[0].except[0]"),
        ({"fromEndpoints": [{}], "fromCIDR": ["10.0.0.0/8"]}, "fromCIDR"),
        ({"toPorts": [{"ports": [{"port": "70000"}]}]}, "toPorts[0].ports[0].port"),
        ({"toPorts": [{"ports": [{"port": "90", "endPort": 80}]}]}, "toPorts[0].ports[0].endPort"),
        ({"toPorts": [{"ports": [{"port": "80", "protocol": "QUIC"}]}]}, "toPorts[0].ports[0].protocol"),
        ({"icmps": [{"fields": [{"type": "Smoke"}]}]}, "icmps[0].fields[0].type"),
    ],
)
def test_an_unsupported_field_is_named_and_its_direction_is_closed(rule: dict[str, Any], path: str) -> None:
    good = {"fromEntities": ["all"]}
    parsed = read({"endpointSelector": {}, "ingress": [good, rule], "egress": [{"toEntities": ["all"]}]})
    assert [fault.path for fault in parsed.faults] == [f"spec.ingress[1].{path}"]
    policy = parsed.policies[0]
    assert policy.isolates == {Direction.INGRESS, Direction.EGRESS}
    assert policy.rules == ()


def test_every_fault_of_a_policy_is_named_with_its_path() -> None:
    """Whoever mends a policy wants to mend it once."""
    parsed = read(
        {
            "endpointSelector": {},
            "log": {"value": "seen"},
            "enableDefaultDeny": {"egress": "perhaps"},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"a": 5, "fqdn:x": "y"}, "matchFancy": 1}],
                    "fromRequires": [{}],
                    "authentication": {"mode": "required"},
                    "toPorts": [
                        {
                            "ports": [{"port": "70000", "protocol": "QUIC"}, {"port": "web", "endPort": 9}],
                            "rules": {"http": [{}]},
                            "serverNames": ["x"],
                        }
                    ],
                },
                {"fromCIDRSet": [{"cidr": "x", "except": ["y", "z"]}], "fromEntities": ["martians"]},
            ],
            "egressDeny": [{"toFQDNs": [{"matchName": "x"}]}, {"toNodes": [{"a": "b"}]}],
        }
    )
    first, second = "spec.ingress[0]", "spec.ingress[1]"
    assert {fault.path for fault in parsed.faults} == {
        "spec.log",
        "spec.enableDefaultDeny.egress",
        f"{first}.fromRequires",
        f"{first}.authentication",
        f"{first}.fromEndpoints[0].matchLabels.a",
        f"{first}.fromEndpoints[0].matchLabels.fqdn:x",
        f"{first}.fromEndpoints[0].matchFancy",
        f"{first}.toPorts[0].rules",
        f"{first}.toPorts[0].serverNames",
        f"{first}.toPorts[0].ports[0].protocol",
        f"{first}.toPorts[0].ports[0].port",
        f"{first}.toPorts[0].ports[1].endPort",
        f"{second}.fromCIDRSet",
        f"{second}.fromCIDRSet[0].cidr",
        f"{second}.fromCIDRSet[0].except[0]",
        f"{second}.fromCIDRSet[0].except[1]",
        f"{second}.fromEntities[0]",
        "spec.egressDeny[0].toFQDNs",
        "spec.egressDeny[1].toNodes",
    }
    policy = parsed.policies[0]
    assert policy.isolates == {Direction.INGRESS, Direction.EGRESS}
    assert [(rule.deny, rule.peers) for rule in policy.rules] == [(True, None)] * 2


def test_egress_fields_that_are_not_supported_close_egress_alone() -> None:
    parsed = read({"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "x"}]}]})
    assert [fault.path for fault in parsed.faults] == ["spec.egress[0].toFQDNs"]
    assert parsed.policies[0].isolates == {Direction.EGRESS}


@pytest.mark.parametrize(
    "selector",
    [
        "all",
        {"matchLabels": {"a": 5}},
        {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]},
        {"matchExpressions": [{"key": "a", "operator": "In"}]},
        {"matchFancy": {"a": "b"}},
    ],
)
def test_a_subject_selector_that_cannot_be_read_closes_nothing(selector: object) -> None:
    parsed = read({"endpointSelector": selector, "ingress": [{}]})
    assert parsed.faults[0].path.startswith("spec.endpointSelector")
    assert parsed.policies == ()


def test_policies_for_nodes_are_refused() -> None:
    parsed = read({"nodeSelector": {}, "ingress": [{}]}, "CiliumClusterwideNetworkPolicy")
    assert [fault.path for fault in parsed.faults] == ["spec.nodeSelector"]
    assert parsed.policies == ()


def test_a_readable_denial_holds_in_a_policy_that_is_not_valid() -> None:
    parsed = read(
        {
            "endpointSelector": {},
            "ingressDeny": [{"fromEntities": ["world"]}],
            "ingress": [{"authentication": {"mode": "required"}}],
        }
    )
    assert [(rule.deny, rule.path) for rule in parsed.policies[0].rules] == [(True, "spec.ingressDeny[0]")]


def test_a_denial_that_cannot_be_read_denies_everything_in_its_direction() -> None:
    parsed = read({"endpointSelector": {}, "ingressDeny": [{"fromNodes": [{"a": "b"}]}]})
    repository = Repository()
    repository.put_policy(("c", "p"), parsed)
    other = read({"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}]})
    repository.put_policy(("c", "q"), other)
    grants = compile_endpoint(repository.selecting(PODS), (), repository)
    assert not judge(grants, Direction.INGRESS, 2, 6, 80).allowed
    assert judge(grants, Direction.EGRESS, 2, 6, 80).allowed


def test_every_part_of_specs_is_a_policy_of_its_own() -> None:
    good, bad = with_rule(fromEntities=["all"]), with_rule(fromNodes=[{"a": "b"}])
    parsed = read(None, specs=[good, bad])
    assert [fault.path for fault in parsed.faults] == ["specs[1].ingress[0].fromNodes"]
    assert [(policy.part, len(policy.rules)) for policy in parsed.policies] == [(1, 1), (2, 0)]


def test_a_policy_of_nothing_is_not_valid() -> None:
    assert [fault.path for fault in read(None).faults] == ["spec"]


@pytest.mark.parametrize(
    ("spec", "isolates"),
    [
        ({"endpointSelector": {}}, set()),
        ({"endpointSelector": {}, "ingress": []}, set()),
        ({"endpointSelector": {}, "ingress": [{}]}, {Direction.INGRESS}),
        ({"endpointSelector": {}, "egressDeny": [{}]}, {Direction.EGRESS}),
        (
            {"endpointSelector": {}, "ingress": [{}], "enableDefaultDeny": {"ingress": False}},
            set(),
        ),
        ({"endpointSelector": {}, "enableDefaultDeny": {"egress": True}}, {Direction.EGRESS}),
    ],
)
def test_what_is_isolated_follows_cilium(spec: dict[str, Any], isolates: set[Direction]) -> None:
    parsed = read(spec)
    assert parsed.valid
    assert parsed.policies[0].isolates == isolates


def test_an_empty_rule_and_an_empty_list_of_peers_allow_nobody() -> None:
    parsed = read({"endpointSelector": {}, "ingress": [{}, {"fromEndpoints": []}]})
    assert [rule.peers for rule in parsed.policies[0].rules] == [(), ()]


def test_icmp_types_are_known_by_number_and_name() -> None:
    fields = [{"type": 8, "family": "IPv4"}, {"type": "EchoReply"}, {"type": 128, "family": "IPv6"}]
    parsed = read(with_rule(fromEntities=["all"], icmps=[{"fields": fields}]))
    assert parsed.policies[0].rules[0].ports == (
        PortRange(Protocol.ICMP, 8, 8),
        PortRange(Protocol.ICMP, 0, 0),
    )


def test_a_namespaced_policy_selects_in_its_own_namespace_whatever_it_says() -> None:
    parsed = read(
        {"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "red"}}, "ingress": [{}]}
    )
    subjects = parsed.policies[0].subjects
    assert subjects.matches(PODS)
    assert not subjects.matches({**PODS, "k8s:io.kubernetes.pod.namespace": "red"})


@pytest.mark.parametrize(
    "spec",
    [
        {"podSelector": {}, "ingress": [{"from": [{}]}]},
        {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]},
        {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
        {"podSelector": {}, "ingress": [{"ports": [{"endPort": 80}]}]},
        {"podSelector": {}, "ingress": [{"ports": [{"port": "web", "endPort": 80}]}]},
        {"podSelector": {}, "ingress": [{"ports": [{"port": 90, "endPort": 80}]}]},
        {"podSelector": {}, "ingress": [{"fancy": 1}]},
    ],
)
def test_a_network_policy_that_cannot_be_read_closes_what_it_selects(spec: dict[str, Any]) -> None:
    parsed = read(spec, "NetworkPolicy")
    assert len(parsed.faults) == 1
    assert parsed.faults[0].path.startswith("spec.ingress[0]")
    assert parsed.policies[0].isolates == {Direction.INGRESS}
    assert parsed.policies[0].rules == ()


def test_every_fault_of_a_network_policy_is_named() -> None:
    parsed = read(
        {
            "podSelector": {},
            "ingress": [
                {"from": [{"ipBlock": {"cidr": "x"}}, {}], "ports": [{"port": 90, "endPort": 80}]},
                {"from": [{"podSelector": {"matchFancy": 1}, "namespaceSelector": {"matchLabels": 1}}]},
            ],
        },
        "NetworkPolicy",
    )
    assert [fault.path for fault in parsed.faults] == [
        "spec.ingress[0].from[0].ipBlock.cidr",
        "spec.ingress[0].from[1]",
        "spec.ingress[0].ports[0].endPort",
        "spec.ingress[1].from[0].namespaceSelector.matchLabels",
        "spec.ingress[1].from[0].podSelector.matchFancy",
    ]


# What the API hears


def test_the_status_says_valid_or_why_not() -> None:
    source = PolicySource("CiliumNetworkPolicy", Name("blue", "p"), "u", 3, {})
    bad = read(with_rule(fromNodes=[{"a": "b"}]))
    wanted = documents.policy_status(source, bad.faults, "2026-01-01T00:00:00Z")
    condition = wanted["status"]["conditions"][0]
    assert (condition["type"], condition["status"], condition["observedGeneration"]) == ("Valid", "False", 3)
    assert "spec.ingress[0].fromNodes" in condition["message"]
    good = documents.policy_status(source, (), "2026-01-01T00:00:00Z")
    assert good["status"]["conditions"][0]["status"] == "True"
    assert documents.same_condition(wanted, documents.policy_status(source, bad.faults, "later"))
    assert not documents.same_condition(wanted, good)


def test_all_nodes_write_the_same_event() -> None:
    source = PolicySource("CiliumNetworkPolicy", Name("blue", "p"), "u", 3, {})
    faults = read(with_rule(fromNodes=[{"a": "b"}])).faults
    _, first = documents.event_document(source, faults, True, "node-1")
    _, second = documents.event_document(source, faults, True, "node-2")
    assert first["metadata"] == second["metadata"]
    assert first["type"] == "Warning"
    assert "spec.ingress[0].fromNodes" in first["message"]
    _, unreadable = documents.event_document(source, faults, False, "node-1")
    assert unreadable["reason"] != first["reason"]

"""Policies of the shapes that Cilium's own examples have, each field at least once.

SUPPORTED: name -> rule. UNSUPPORTED: name -> (rule, path of the first field that is not supported).
A name that begins with "cluster-" is of the whole cluster; a list of rules is the form `specs`.
"""

from __future__ import annotations

from typing import Any

WEB: dict[str, Any] = {"matchLabels": {"app": "web"}}
CLIENT: dict[str, Any] = {"matchLabels": {"app": "client"}}
TCP80: dict[str, Any] = {"port": "80", "protocol": "TCP"}

Rule = dict[str, Any]


def _rule(**fields: Any) -> Rule:
    return {"endpointSelector": WEB, **fields}


def _l7(**rules: Any) -> Rule:
    return _rule(ingress=[{"fromEndpoints": [CLIENT], "toPorts": [{"ports": [TCP80], "rules": rules}]}])


def _to_ports(**block: Any) -> Rule:
    return _rule(egress=[{"toPorts": [{"ports": [TCP80], **block}]}])


SUPPORTED: dict[str, Rule | list[Rule]] = {
    "l3-by-labels": _rule(description="clients alone", ingress=[{"fromEndpoints": [CLIENT]}]),
    "l3-egress-by-labels": _rule(egress=[{"toEndpoints": [CLIENT]}]),
    "everybody-in": _rule(ingress=[{"fromEndpoints": [{}]}]),
    "everywhere-out": _rule(egress=[{"toEndpoints": [{}]}]),
    "nobody-in": _rule(ingress=[{}]),
    "nowhere-out": _rule(egress=[{}]),
    "all-pods": {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]},
    "expressions": {
        "endpointSelector": {
            "matchLabels": {"any:app": "web"},
            "matchExpressions": [
                {"key": "k8s:tier", "operator": "In", "values": ["front", "back"]},
                {"key": "canary", "operator": "DoesNotExist"},
                {"key": "owner", "operator": "Exists"},
                {"key": "zone", "operator": "NotIn", "values": ["far"]},
            ],
        },
        "ingress": [{"fromEndpoints": [CLIENT, {"matchLabels": {"app": "other"}}]}],
    },
    "l4-ports": _rule(ingress=[{"toPorts": [{"ports": [TCP80, {"port": "53", "protocol": "ANY"}]}]}]),
    "l4-range": _rule(egress=[{"toPorts": [{"ports": [{"port": "1024", "endPort": 2048}]}]}]),
    "l4-named-port": _rule(ingress=[{"toPorts": [{"ports": [{"port": "metrics", "protocol": "TCP"}]}]}]),
    "l4-sctp": _rule(ingress=[{"toPorts": [{"ports": [{"port": "36412", "protocol": "SCTP"}]}]}]),
    "l3-and-l4": _rule(ingress=[{"fromEndpoints": [CLIENT], "toPorts": [{"ports": [TCP80]}]}]),
    "icmp": _rule(egress=[{"icmps": [{"fields": [{"type": 8, "family": "IPv4"}, {"type": "EchoReply"}]}]}]),
    "addresses": _rule(
        egress=[
            {"toCIDR": ["192.0.2.0/24", "2001:db8::/32"]},
            {"toCIDRSet": [{"cidr": "198.51.100.0/24", "except": ["198.51.100.64/26"]}]},
        ],
        ingress=[{"fromCIDR": ["203.0.113.7/32"], "toPorts": [{"ports": [TCP80]}]}],
    ),
    "entities": _rule(
        ingress=[{"fromEntities": ["host", "remote-node", "health", "init", "unmanaged"]}],
        egress=[{"toEntities": ["world", "cluster", "kube-apiserver", "all"]}],
    ),
    "init-pods": {
        "endpointSelector": {"matchLabels": {"reserved:init": ""}},
        "ingress": [{"fromEntities": ["host"]}],
    },
    "denials": _rule(
        ingress=[{"fromEntities": ["all"]}],
        ingressDeny=[
            {"fromEndpoints": [CLIENT]},
            {"fromEntities": ["world"], "toPorts": [{"ports": [TCP80]}]},
        ],
        egressDeny=[{"toCIDRSet": [{"cidr": "169.254.169.254/32"}]}],
    ),
    "no-default-deny": _rule(
        enableDefaultDeny={"ingress": False, "egress": False}, ingress=[{"fromEndpoints": [CLIENT]}]
    ),
    "namespaces": _rule(
        ingress=[
            {"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "other"}}]},
            {"fromEndpoints": [{"matchLabels": {"io.cilium.k8s.namespace.labels.team": "b"}}]},
        ]
    ),
    "service-accounts": _rule(
        ingress=[{"fromEndpoints": [{"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "robot"}}]}]
    ),
    "to-dns": _rule(
        egress=[
            {
                "toEndpoints": [
                    {
                        "matchLabels": {
                            "k8s:io.kubernetes.pod.namespace": "kube-system",
                            "k8s:k8s-app": "kube-dns",
                        }
                    }
                ],
                "toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}]}],
            }
        ]
    ),
    "rule-labels": _rule(
        labels=[{"source": "k8s", "key": "made-for", "value": "a shape"}],
        ingress=[{"fromEndpoints": [CLIENT]}],
    ),
    "two-rules": [_rule(ingress=[{"fromEndpoints": [CLIENT]}]), _rule(egress=[{"toEntities": ["cluster"]}])],
    "cluster-isolate": {
        "endpointSelector": {"matchLabels": {"app": "web", "k8s:io.kubernetes.pod.namespace": "shapes"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}],
    },
    "cluster-health": {
        "endpointSelector": {"matchLabels": {"reserved:health": ""}},
        "ingress": [{"fromEntities": ["remote-node"]}],
        "egress": [{"toEntities": ["remote-node"]}],
    },
}

IN, OUT = "spec.ingress[0]", "spec.egress[0]"
UNSUPPORTED: dict[str, tuple[Rule | list[Rule], str]] = {
    "l7-http": (
        _l7(http=[{"method": "GET", "path": "/public/.*", "host": "a", "headers": ["X-A: b"]}]),
        f"{IN}.toPorts[0].rules",
    ),
    "l7-http-headers": (
        _l7(http=[{"headerMatches": [{"name": "X-A", "value": "b", "mismatch": "LOG"}]}]),
        f"{IN}.toPorts[0].rules",
    ),
    "l7-kafka": (_l7(kafka=[{"role": "produce", "topic": "orders"}]), f"{IN}.toPorts[0].rules"),
    "l7-other": (_l7(l7proto="r2d2", l7=[{"cmd": "READ"}]), f"{IN}.toPorts[0].rules"),
    "l7-dns": (
        _to_ports(rules={"dns": [{"matchPattern": "*.example.org"}, {"matchName": "example.org"}]}),
        f"{OUT}.toPorts[0].rules",
    ),
    "fqdn": (
        _rule(egress=[{"toFQDNs": [{"matchName": "example.org"}, {"matchPattern": "*.example.org"}]}]),
        f"{OUT}.toFQDNs",
    ),
    "services": (
        _rule(egress=[{"toServices": [{"k8sService": {"serviceName": "db", "namespace": "shapes"}}]}]),
        f"{OUT}.toServices",
    ),
    "services-by-label": (
        _rule(egress=[{"toServices": [{"k8sServiceSelector": {"selector": {"matchLabels": {"a": "b"}}}}]}]),
        f"{OUT}.toServices",
    ),
    "cloud-groups": (
        _rule(egress=[{"toGroups": [{"aws": {"securityGroupsIds": ["sg-1"]}}]}]),
        f"{OUT}.toGroups",
    ),
    "cloud-groups-in": (
        _rule(ingress=[{"fromGroups": [{"aws": {"labels": {"a": "b"}}}]}]),
        f"{IN}.fromGroups",
    ),
    "address-groups": (
        _rule(ingress=[{"fromCIDRSet": [{"cidrGroupRef": "office"}]}]),
        f"{IN}.fromCIDRSet[0].cidrGroupRef",
    ),
    "address-groups-by-label": (
        _rule(egress=[{"toCIDRSet": [{"cidrGroupSelector": {"matchLabels": {"a": "b"}}}]}]),
        f"{OUT}.toCIDRSet[0].cidrGroupSelector",
    ),
    "requires": (
        _rule(ingress=[{"fromRequires": [{"matchLabels": {"env": "prod"}}]}]),
        f"{IN}.fromRequires",
    ),
    "requires-out": (_rule(egress=[{"toRequires": [{"matchLabels": {"env": "prod"}}]}]), f"{OUT}.toRequires"),
    "nodes": (_rule(ingress=[{"fromNodes": [{"matchLabels": {"pool": "a"}}]}]), f"{IN}.fromNodes"),
    "nodes-out": (_rule(egress=[{"toNodes": [{"matchLabels": {"pool": "a"}}]}]), f"{OUT}.toNodes"),
    "authentication": (
        _rule(ingress=[{"fromEndpoints": [CLIENT], "authentication": {"mode": "required"}}]),
        f"{IN}.authentication",
    ),
    "authentication-out": (
        _rule(egress=[{"toEndpoints": [CLIENT], "authentication": {"mode": "required"}}]),
        f"{OUT}.authentication",
    ),
    "tls-in": (
        _to_ports(terminatingTLS={"secret": {"namespace": "shapes", "name": "in"}}),
        f"{OUT}.toPorts[0].terminatingTLS",
    ),
    "tls-out": (
        _to_ports(originatingTLS={"secret": {"namespace": "shapes", "name": "out"}}),
        f"{OUT}.toPorts[0].originatingTLS",
    ),
    "tls-names": (_to_ports(serverNames=["example.org"]), f"{OUT}.toPorts[0].serverNames"),
    "listener": (
        _to_ports(listener={"envoyConfig": {"kind": "CiliumEnvoyConfig", "name": "a"}, "name": "b"}),
        f"{OUT}.toPorts[0].listener",
    ),
    "many-faults": (  # the last of its faults, beside others of the same rule
        _rule(
            ingress=[
                {
                    "fromRequires": [{"matchLabels": {"env": "prod"}}],
                    "authentication": {"mode": "required"},
                    "toPorts": [{"ports": [TCP80], "rules": {"http": [{"method": "GET"}]}}],
                }
            ]
        ),
        f"{IN}.toPorts[0].rules",
    ),
    "logged": (_rule(log={"value": "seen"}, ingress=[{"fromEndpoints": [CLIENT]}]), "spec.log"),
    "second-rule": (
        [_rule(ingress=[{}]), _rule(egress=[{"toFQDNs": [{"matchName": "a.b"}]}])],
        "specs[1].egress[0].toFQDNs",
    ),
    "cluster-hosts": (
        {"nodeSelector": {"matchLabels": {"pool": "a"}}, "ingress": [{"fromEntities": ["cluster"]}]},
        "spec.nodeSelector",
    ),
}


def document(name: str, rule: Rule | list[Rule], namespace: str) -> dict[str, Any]:
    """The resource of a rule, or of many."""
    wide = name.startswith("cluster-")
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy" if wide else "CiliumNetworkPolicy",
        "metadata": {
            "name": name,
            "labels": {"made": "shapes"},
            **({} if wide else {"namespace": namespace}),
        },
        **({"specs": rule} if isinstance(rule, list) else {"spec": rule}),
    }

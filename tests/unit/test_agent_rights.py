"""The agent may do exactly what it does: its ClusterRole, its certificate's groups, its resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from agent.planes.kubernetes.plane import resources

MANIFESTS = Path(__file__).parents[2] / "agent" / "manifests"

# The golden list: a change of the role is a change of this file, seen by whoever reads the change.
GOLDEN = {
    ("", "namespaces"): {"list", "watch"},
    ("", "nodes"): {"list", "watch"},
    ("", "services"): {"list", "watch"},
    ("discovery.k8s.io", "endpointslices"): {"list", "watch"},
    ("networking.k8s.io", "networkpolicies"): {"list", "watch"},
    ("cilium.io", "ciliumnetworkpolicies"): {"get", "list", "watch"},
    ("cilium.io", "ciliumclusterwidenetworkpolicies"): {"get", "list", "watch"},
    ("cilium.io", "ciliumnetworkpolicies/status"): {"patch"},
    ("cilium.io", "ciliumclusterwidenetworkpolicies/status"): {"patch"},
    ("cilium.io", "ciliumidentities"): {"get", "list", "watch", "create", "patch", "delete"},
    ("cilium.io", "ciliumendpoints"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "events"): {"create"},
}


def documents(name: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((MANIFESTS / name).read_text()) if found]


def test_the_role_is_the_golden_list_and_nothing_more() -> None:
    role = next(d for d in documents("access.yaml") if d["kind"] == "ClusterRole")
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}, "no names, no URLs"
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    assert found == GOLDEN
    assert not any("*" in (group, resource) or "*" in verbs for (group, resource), verbs in found.items())


def test_the_role_is_bound_to_the_agents_group_alone() -> None:
    bindings = [d for d in documents("access.yaml") if d["kind"] == "ClusterRoleBinding"]
    assert [binding["subjects"] for binding in bindings] == [
        [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "underpass:agents"}]
    ]
    assert bindings[0]["roleRef"]["name"] == "underpass:agent"


def test_whatever_is_watched_may_be_read() -> None:
    for resource in resources("node-1"):
        parts = resource.path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        if parts[-1] == "pods":
            # Its own node's pods: the Node authorizer allows them by this very selector.
            assert resource.query == {"fieldSelector": "spec.nodeName=node-1"}
            continue
        assert {"list", "watch"} <= GOLDEN[(group, parts[-1])], resource.path


def test_the_resources_are_ciliums_and_keep_unknown_fields() -> None:
    found = {d["metadata"]["name"]: d["spec"] for d in documents("crds.yaml")}
    assert set(found) == {
        "ciliumnetworkpolicies.cilium.io",
        "ciliumclusterwidenetworkpolicies.cilium.io",
        "ciliumidentities.cilium.io",
        "ciliumendpoints.cilium.io",
    }
    for spec in found.values():
        assert [version["name"] for version in spec["versions"]] == ["v2"]
    for name in ("ciliumnetworkpolicies.cilium.io", "ciliumclusterwidenetworkpolicies.cilium.io"):
        version = found[name]["versions"][0]
        properties = version["schema"]["openAPIV3Schema"]["properties"]
        assert version["subresources"] == {"status": {}}
        assert properties["spec"]["x-kubernetes-preserve-unknown-fields"] is True
        assert properties["specs"]["items"]["x-kubernetes-preserve-unknown-fields"] is True

"""Identities that nobody has any more go, on a real cluster; those in use stay, and so do their rights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.test_new_pods import policy
from tests.lab.network.town import configured, server
from tests.lab.pods import Pods
from tests.lab.waiting import until
from tests.sizes import SIZES

PORT = 8080
WAIT = SIZES.identity_wait_seconds


@pytest.fixture
def soon(lab: Rendered) -> Iterator[None]:
    """The agents of all nodes collect identities after the seconds of this suite's size."""
    with configured(lab, identity_wait_seconds=WAIT):
        yield


def there(cluster: Cluster) -> set[str]:
    """The names of all CiliumIdentity resources."""
    listed = json.loads(cluster.kubectl("get", "ciliumidentities", "-o", "json").stdout)
    return {item["metadata"]["name"] for item in listed["items"]}


def identity_of(pods: Pods, name: str) -> str:
    """The number of a pod's identity, as its CiliumEndpoint tells it."""
    path = "jsonpath={.status.identity.id}"
    argv = ["get", "ciliumendpoint", name, "-n", pods.namespace, "-o", path]
    return str(until(lambda: pods.cluster.kubectl(*argv, ok=(0, 1)).stdout, f"{name} has an identity", 20))


def test_an_identity_that_nobody_has_any_more_goes_and_others_stay(
    lab: Rendered, cluster: Cluster, soon: None, space: Callable[[str], Pods], evidence: Evidence
) -> None:
    """The last pod with its labels is deleted: its identity goes; who keeps theirs keeps being let in"""
    pods = space("collected")
    first, second = lab.nodes[:2]
    friends = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
    pods.apply(policy("closed", "closed", policyTypes=["Ingress"], ingress=[{"from": friends}]))
    for name, node, role in (
        ("closed", first, "closed"),
        ("stays", second, "friend"),
        ("twin", first, "passing"),
        ("goes", second, "passing"),
    ):
        labels = {"app": role, "role": role}
        pods.run(name, node.name, labels=labels, containers=[server(pods, [PORT])])
    pods.ready()
    identities = {name: identity_of(pods, name) for name in ("closed", "stays", "goes")}
    assert identity_of(pods, "twin") == identities["goes"]
    assert set(identities.values()) <= there(cluster)

    def delete(name: str) -> None:
        cluster.kubectl("delete", "pod", name, "-n", pods.namespace, timeout=60)
        pods.made.remove(name)

    delete("twin")
    delete("goes")
    until(lambda: identities["goes"] not in there(cluster), "its identity is gone", 4 * WAIT + 30)
    assert {identities["closed"], identities["stays"]} <= there(cluster)
    target = pods.address("closed")
    assert pods.talk("stays", target, PORT) == f"closed {pods.address('stays')}"

    pods.run(
        "goes", second.name, labels={"app": "passing", "role": "passing"}, containers=[server(pods, [PORT])]
    )
    pods.ready()
    assert identity_of(pods, "goes") in there(cluster), "who comes back is given one"
    assert pods.talk("goes", target, PORT, limit=1) == "ETIMEDOUT"
    evidence(f"{identities['goes']} went after {WAIT} s unused, {identities['stays']} stayed")

"""The town: pods of two namespaces on two nodes, made once for all tests of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.conftest import toolbox
from tests.lab.network.town import NAMESPACES, Resident, Town
from tests.lab.pods import Pods


@pytest.fixture(scope="package")
def town(lab: Rendered, cluster: Cluster) -> Iterator[Town]:
    """Three pods on each node; see `Resident`."""
    first, second = lab.nodes[:2]
    residents = [
        Resident("r0", "blue", first, {"app": "a"}, "default", {("web", "TCP"): 80, ("dns", "UDP"): 81}),
        Resident("r1", "blue", second, {"app": "b"}, "robot", {("web", "TCP"): 8080}),
        Resident("r2", "blue", second, {"app": "a", "tier": "x"}),
        Resident("r3", "red", first, {"app": "a"}, "robot", {("web", "TCP"): 443}),
        Resident("r4", "red", second, {"app": "c", "tier": "x"}),
        Resident("r5", "red", first, {"app": "b"}),
    ]
    spaces = {name: Pods(cluster, name, toolbox()) for name in NAMESPACES}
    try:
        for name, pods in spaces.items():
            pods.create()
            labels = [f"{key}={value}" for key, value in NAMESPACES[name].items()]
            cluster.kubectl("label", "namespace", name, *labels)
            cluster.kubectl("create", "serviceaccount", "robot", "-n", name)
        town = Town(lab, spaces, residents)
        town.settle()
        yield town
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Pods.remove, spaces.values()))


@pytest.fixture
def policies(town: Town) -> Iterator[Town]:
    """The town; policies made by a test are gone after it."""
    yield town
    for name, pods in town.spaces.items():
        pods.cluster.kubectl("delete", "networkpolicy,cnp", "--all", "-n", name)


@pytest.fixture
def space(cluster: Cluster) -> Iterator[Callable[[str], Pods]]:
    """Makes namespaces of a test's own, which go after it; nobody waits for that."""
    made: list[Pods] = []

    def make(name: str) -> Pods:
        pods = Pods(cluster, name, toolbox())
        made.append(pods)
        pods.create()
        return pods

    yield make
    names = [pods.namespace for pods in made]
    if names:  # what could not be asked for now goes with the lab
        cluster.kubectl("delete", "namespace", "--ignore-not-found", "--wait=false", *names, ok=(0, 1))

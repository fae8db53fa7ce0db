"""The order of the areas; what those about Istio share: pods with sidecars, and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.render import Rendered
from lab.verify import area_of, areas
from tests.lab.conftest import toolbox
from tests.lab.mesh import Mesh, image
from tests.lab.pods import Pods


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The areas in the order of `lab verify`: what one leaves behind, the next meets in both."""
    order = areas()
    here = Path(__file__).parent
    places = [place for place, item in enumerate(items) if item.path.parent == here]
    chosen = sorted((items[place] for place in places), key=lambda item: order.index(area_of(item.path)))
    for place, item in zip(places, chosen, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def mesh(lab: Rendered, cluster: Cluster) -> Iterator[Mesh]:
    """Injected pods under STRICT: `client` and `near` on the first node, `far` on the last.

    `client` and `raw` (on the last node) speak TCP and UDP; `near` and `far` HTTP.
    """
    if lab.istio_version is None:
        pytest.skip("the lab has no Istio")
    mesh = Mesh(cluster, "mesh", toolbox(), httpbin=image("sample-images", "httpbin"))
    mesh.create()
    first, last = lab.nodes[0].name, lab.nodes[-1].name
    mesh.serve("near", first, labels={"split": "yes", "version": "v1"}, account="near")
    mesh.serve("far", last, labels={"split": "yes", "version": "v2"}, account="far")
    mesh.run("client", first)
    mesh.run("raw", last)
    try:
        mesh.ready(90)
        yield mesh
    finally:
        mesh.remove()


@pytest.fixture(scope="session")
def outside(lab: Rendered, cluster: Cluster, mesh: Mesh) -> Iterator[Pods]:
    """Pods without a sidecar on the first node: `plain`, and `host` in the node's own network."""
    pods = Pods(cluster, "outside", toolbox())
    pods.create()
    pods.run("plain", lab.nodes[0].name)
    pods.run("host", lab.nodes[0].name, hostNetwork=True, containers=[_sleeper(toolbox())])
    try:
        pods.ready()
        yield pods
    finally:
        pods.remove()


def _sleeper(name: str) -> dict[str, object]:
    return {"name": "sleep", "image": name, "imagePullPolicy": "Never", "command": ["sleep", "infinity"]}

"""Fixtures of the BPF tests. They need root and a node image; nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.fabric import OPEN, Fabric, Pod
from tests.bpf.sandbox import Node, Sandbox


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: runs after all others")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test of what was covered comes last."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have measured by the way, a line each; none of it decided a test."""
    passed = terminalreporter.stats.get("passed", [])
    reports = [one for one in passed if one.user_properties and "tests/bpf" in one.nodeid]
    for report in reports:
        name = report.nodeid.rpartition("::")[2]
        told = ", ".join(f"{key}: {value}" for key, value in report.user_properties)
        terminalreporter.write_line(f"{name}: {told}")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    if os.geteuid():
        pytest.fail("the BPF tests need root")
    with Sandbox() as made:
        yield made


@pytest.fixture(scope="session")
def fabric(sandbox: Sandbox) -> Iterator[Fabric]:
    """Two nodes, loaded once for the whole session."""
    made = Fabric(sandbox, ["one", "two"])
    yield made
    for node in made.nodes:
        node.loader("down")
    made.close()


@pytest.fixture(scope="session")
def node(fabric: Fabric) -> Node:
    return fabric.nodes[0]


@pytest.fixture(scope="session")
def other(fabric: Fabric) -> Node:
    return fabric.nodes[1]


class Pods:
    """Makes pods and takes them away after the test."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.made: list[Pod] = []

    def __call__(self, node: Node, identity: int, policy: object = OPEN) -> Pod:
        pod = self._fabric.pod(node, identity, policy)  # type: ignore[arg-type]
        self.made.append(pod)
        return pod


@pytest.fixture
def pods(fabric: Fabric) -> Iterator[Pods]:
    maker = Pods(fabric)
    yield maker
    for pod in maker.made:
        fabric.remove(pod)


@pytest.fixture
def client(pods: Pods, node: Node) -> Pod:
    return pods(node, 1001)


@pytest.fixture
def server(pods: Pods, node: Node) -> Pod:
    return pods(node, 1002)


@pytest.fixture
def far(pods: Pods, other: Node) -> Pod:
    """A pod of the other node."""
    return pods(other, 1003)

"""A pytest plugin for the checks of guides: what a check may ask of the lab."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import testinfra

from lab import builds
from lab import render as rendering
from lab.cluster import Cluster
from lab.render import Rendered


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab", help="the running lab that is asked")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Rendered:
    """The lab that the guide is walked on."""
    chosen = rendering.read(request.config.getoption("--lab"))
    assert chosen, "there is no such lab"
    return chosen


@pytest.fixture(scope="session")
def node(lab: Rendered) -> Callable[[str], Any]:
    """Testinfra's view of a node: `node("node-1").check_output("underpass status")`."""
    return lambda name: testinfra.get_host(f"ssh://{name}", ssh_config=str(lab.folder / "ssh_config"))


@pytest.fixture(scope="session")
def kubectl(lab: Rendered) -> Callable[..., str]:
    """Kubectl on the lab: what it prints; nothing where the object is not there."""
    cluster = Cluster(lab, builds.locate()["kubernetes"].path / "bin")

    def ask(*arguments: str) -> str:
        return cluster.kubectl(*arguments, ok=range(256)).stdout.strip()

    return ask


@pytest.fixture(scope="session")
def objects(kubectl: Callable[..., str]) -> Callable[..., list[dict[str, Any]]]:
    """The objects that `kubectl get ARGUMENTS` finds, as documents; none where the namespace is not there."""

    def get(*arguments: str) -> list[dict[str, Any]]:
        text = kubectl("get", *arguments, "-o", "json", "--ignore-not-found")
        document = json.loads(text) if text else {"items": []}
        found: list[dict[str, Any]] = document.get("items", [document])
        return found

    return get


@pytest.fixture(scope="session")
def reach(kubectl: Callable[..., str]) -> Callable[..., str]:
    """What a pod gets from a URL: the HTTP status, or 000 where nobody answers in time.

    `reach("shop", "deploy/web", "http://orders/")`; empty where there is no such pod.
    """

    def ask(namespace: str, pod: str, url: str, seconds: int = 3) -> str:
        curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", str(seconds), url]
        return kubectl("exec", "-n", namespace, pod, "--", *curl)

    return ask

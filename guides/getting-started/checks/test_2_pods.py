"""Step 2: the pods run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Objects = Callable[..., list[dict[str, Any]]]


def _ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


@pytest.mark.parametrize("name", ["friend", "guest"])
def test_the_pod_is_ready(objects: Objects, name: str) -> None:
    """The pod runs and is ready"""
    pods = objects("pod", name, "-n", "hello")
    assert pods, f"namespace hello has no pod {name}; `lab kubectl apply -f ...` makes it"
    assert _ready(pods[0]), f"pod {name} is there and not ready yet: {pods[0]['status'].get('phase')}"


def test_a_server_runs_on_each_node(objects: Objects) -> None:
    """A web server is ready on each of two nodes"""
    pods = objects("pods", "-n", "hello", "-l", "app=web")
    assert pods, "namespace hello has no pod with the label app=web"
    ready = {pod["spec"].get("nodeName") for pod in pods if _ready(pod)}
    assert len(ready) == 2, f"servers are ready on {sorted(ready) or 'no node'}"

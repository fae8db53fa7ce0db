"""Step 1: the pods of the mesh have sidecars, and are reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("name", ["client", "web-v1", "web-v2"])
def test_the_pod_has_a_sidecar_and_is_ready(objects: Callable[..., list[dict[str, Any]]], name: str) -> None:
    """The pod of namespace meshed is ready and has a sidecar"""
    pods = objects("pod", name, "-n", "meshed")
    assert pods, f"namespace meshed has no pod {name}"
    containers = [entry["name"] for entry in pods[0]["spec"].get("initContainers", [])]
    assert "istio-proxy" in containers, "no sidecar; was the namespace labelled before the pod was made?"
    conditions = {entry["type"]: entry["status"] for entry in pods[0]["status"].get("conditions", [])}
    assert conditions.get("Ready") == "True", f"it is not ready yet: {pods[0]['status'].get('phase')}"


def test_the_client_gets_an_answer(reach: Callable[..., str]) -> None:
    """The pod client gets an answer from http://web/"""
    seen = reach("meshed", "client", "http://web/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"

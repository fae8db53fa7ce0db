"""Step 1: the shop is open to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PODS = [
    ("shop", "orders"),
    ("shop", "frontend"),
    ("shop", "reports"),
    ("street", "passer"),
    ("street", "kiosk"),
]


@pytest.mark.parametrize(("namespace", "name"), PODS)
def test_the_pod_is_ready(objects: Callable[..., list[dict[str, Any]]], namespace: str, name: str) -> None:
    """The pod runs and is ready"""
    pods = objects("pod", name, "-n", namespace)
    assert pods, f"namespace {namespace} has no pod {name}"
    conditions = {entry["type"]: entry["status"] for entry in pods[0]["status"].get("conditions", [])}
    assert conditions.get("Ready") == "True", f"{name} is not ready yet: {pods[0]['status'].get('phase')}"


def test_everybody_gets_in(reach: Callable[..., str]) -> None:
    """The pod reports gets an answer from http://orders/"""
    seen = reach("shop", "reports", "http://orders/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"

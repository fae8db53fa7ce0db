"""Step 3: the servers have a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_the_service_is_there(objects: Callable[..., list[dict[str, Any]]]) -> None:
    """The Service web has port 80"""
    services = objects("service", "web", "-n", "hello")
    assert services, "namespace hello has no Service web"
    ports = [port["port"] for port in services[0]["spec"]["ports"]]
    assert ports == [80], f"its ports are {ports}"


def test_a_pod_reaches_it_by_name(reach: Callable[..., str]) -> None:
    """The pod friend gets an answer from http://web/"""
    # Each node's agent hears of new pods in its own time.
    seen = next(
        (code for code in (reach("hello", "friend", "http://web/") for _ in range(4)) if code == "200"), "000"
    )
    assert seen == "200", "nobody answers there, or there is no such pod"

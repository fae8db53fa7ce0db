"""Step 4: the Service can be opened from this machine."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

from lab.render import Rendered


def test_every_node_serves_it(lab: Rendered, objects: Callable[..., list[dict[str, Any]]]) -> None:
    """The Service web answers at a port of every node, asked from this machine"""
    services = objects("service", "web", "-n", "hello")
    assert services, "namespace hello has no Service web"
    port = services[0]["spec"]["ports"][0].get("nodePort")
    assert port, f"the Service is of type {services[0]['spec']['type']}, and no node serves it"
    for node in lab.nodes:
        connection = http.client.HTTPConnection(node.address, port, timeout=5)
        try:
            connection.request("GET", "/")
            status = connection.getresponse().status
        except OSError as fault:
            raise AssertionError(f"{node.name} at {node.address}:{port}: {fault}") from None
        finally:
            connection.close()
        assert status == 200, f"{node.name} answers with status {status}"

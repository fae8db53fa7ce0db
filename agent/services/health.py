"""Health check node ports: they tell a load balancer which nodes have an endpoint of a Service.

The answer is kube-proxy's, so that whoever asks it today can ask us: JSON, the number of ready local
endpoints also as a header, 200 while this node should get traffic, else 503.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from agent.httpserver import Server
from agent.model.objects import EndpointSlice, Name, Service

WEIGHT_HEADER = "X-Load-Balancing-Endpoint-Weight"
QUESTION_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Health:
    """What one port says: whose Service, and how many of its endpoints on this node are ready."""

    service: Name
    endpoints: int


def compile_health(service: Service, slices: Iterable[EndpointSlice], node: str) -> dict[int, Health]:
    """The health check port of `service` on the node called `node`; nothing where it has none."""
    if not service.health_check_port or not service.external_local:
        return {}
    ready = {
        address
        for one in slices
        for endpoint in one.endpoints
        if endpoint.node == node and endpoint.ready
        for address in endpoint.addresses
    }
    return {service.health_check_port: Health(service.name, len(ready))}


class HealthPorts:
    """A small HTTP server for each port, on every address of the node."""

    def __init__(self, healthy: Callable[[], bool], address: str = "0.0.0.0") -> None:  # noqa: S104
        """`healthy()` says whether this node's network is in step with the cluster."""
        self._healthy = healthy
        self._address = address
        self._wanted: Mapping[int, Health] = {}
        self._servers: dict[int, Server] = {}
        self._lock = threading.Lock()

    def apply(self, wanted: Mapping[int, Health]) -> None:
        """Serve exactly these ports. Raises OSError, after the others, for one that somebody else has."""
        faults = []
        with self._lock:
            self._wanted = wanted
            for port in set(self._servers) - set(wanted):
                self._close(port)
            for port in sorted(set(wanted) - set(self._servers)):
                try:
                    self._open(port)
                except OSError as fault:
                    faults.append(f"{port} ({wanted[port].service}): {fault.strerror or fault}")
        if faults:
            raise OSError("health check ports cannot be served: " + "; ".join(faults))

    def answer(self, port: int) -> tuple[int, bytes, int] | None:
        """(status, body, ready endpoints) of the port; None when it is no longer wanted."""
        health = self._wanted.get(port)
        if health is None:
            return None
        healthy = self._healthy()
        said = {
            "service": {"namespace": health.service.namespace, "name": health.service.name},
            "localEndpoints": health.endpoints,
            "serviceProxyHealthy": healthy,
        }
        status = 200 if healthy and health.endpoints else 503
        return status, json.dumps(said).encode() + b"\n", health.endpoints

    def stop(self) -> None:
        """Close all ports."""
        self.apply({})

    def _open(self, port: int) -> None:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            timeout = QUESTION_SECONDS

            def do_GET(self) -> None:
                found = answer(port)
                if found is None:
                    self.send_error(404)
                    return
                status, body, endpoints = found
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header(WEIGHT_HEADER, str(endpoints))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Load balancers ask all the time."""

        server = Server((self._address, port), Handler)
        self._servers[port] = server
        threading.Thread(target=server.serve_forever, name=f"health-{port}", daemon=True).start()

    def _close(self, port: int) -> None:
        server = self._servers.pop(port)
        server.shutdown()
        server.server_close()

"""The Services that have changed and are still to be made into frontends and health check ports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.cluster import Cluster, put
from agent.services.compile import Frontend, compile_service
from agent.services.health import Health, compile_health
from agent.state import OWNER_SERVICES
from agent.tables import Wanted
from datapath.tables import ServiceKey


class ServiceBook:
    """Of the engine's thread alone."""

    def __init__(self, cluster: Cluster, node: str, wanted: Wanted[ServiceKey, Frontend]) -> None:
        """`node` is the name of this node, `wanted` where frontends go."""
        self._cluster = cluster
        self._node = node
        self._wanted = wanted
        self._changed: set[str] = set()
        self._health: dict[str, dict[int, Health]] = {}

    def changed(self, services: Iterable[str]) -> None:
        """These Services, or what backs them, are different."""
        self._changed.update(services)

    def compile(self) -> Mapping[int, Health] | None:
        """Bring frontends up to date; returns all health check ports if any is different, else None."""
        before = dict(self._health)
        for key in self._changed:
            service = self._cluster.services.get(key)
            slices = self._cluster.slices_of.get(key, {}).values()
            frontends = compile_service(service, slices, self._node) if service else {}
            self._wanted.put((OWNER_SERVICES, key), frontends)
            put(self._health, key, (compile_health(service, slices, self._node) if service else {}) or None)
        self._changed.clear()
        if self._health == before:
            return None
        return {port: health for one in self._health.values() for port, health in one.items()}

"""Follows up on what the engine did: CiliumEndpoints, identities, policy status, routes.

Every write goes through the outbox under a key of its own, is made from the state at the time of writing,
and is made only if the API does not say so already.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agent.endpoints import LocalEndpoint
from agent.engine import Engine
from agent.identity.allocator import IdentityAllocator
from agent.model.objects import Endpoint, Labels, Name, Node, PolicySource
from agent.outbox import Outbox
from agent.planes.kubernetes.client import ApiError
from agent.policy.rules import Parsed
from agent.publish import documents
from agent.services.health import Health

# A running endpoint keeps its identity this long after the next one was made known, so that the other
# nodes have rules for it before its packets arrive.
IDENTITY_GRACE_SECONDS = 1.0
# Deleting what a watch showed as left over waits for the ADD or DEL that may explain it.
ORPHAN_SECONDS = 30.0


class Writer(Protocol):
    """The part of `Api` that the publisher uses."""

    def get(self, path: str) -> dict[str, Any]: ...

    def create(self, path: str, body: object) -> dict[str, Any]: ...

    def merge(self, path: str, body: object) -> dict[str, Any]: ...

    def delete(self, path: str, body: object | None = None) -> dict[str, Any]: ...


class Revocations(Protocol):
    """Who ends connections that are no longer allowed."""

    def moved(self, endpoints: set[int]) -> None: ...

    def renamed(self, peers: Mapping[ipaddress.IPv4Address, int]) -> None: ...


class Publisher:
    """The engine's `Effects`, as far as they go to the API. Its methods return at once."""

    def __init__(
        self,
        engine: Engine,
        api: Writer,
        allocator: IdentityAllocator,
        outbox: Outbox,
        log: Callable[..., None],
        network: Callable[[Node, Sequence[Node]], None],
        revoker: Revocations,
        health: Callable[[Mapping[int, Health]], None],
    ) -> None:
        """`network(own, others)` brings the host's routes in step, `health(ports)` the health check ports."""
        self._engine = engine
        self._api = api
        self._allocator = allocator
        self._outbox = outbox
        self._log = log
        self._network = network
        self._revoker = revoker
        self._health = health
        self._node = engine.settings.node
        self._lock = threading.Lock()
        self._mine: dict[str, LocalEndpoint] = {}
        self._told: dict[str, str] = {}

    # Nodes and connections

    def nodes_changed(self, own: Node, others: Sequence[Node]) -> None:
        self._outbox.submit("network", lambda: self._network(own, others))

    def policies_moved(self, endpoints: set[int]) -> None:
        self._revoker.moved(endpoints)

    def identities_moved(self, peers: Mapping[ipaddress.IPv4Address, int]) -> None:
        self._revoker.renamed(peers)

    def health_changed(self, ports: Mapping[int, Health]) -> None:
        self._outbox.submit("health-ports", lambda: self._health(ports))

    # Endpoints

    def endpoint_changed(self, endpoint: LocalEndpoint) -> None:
        if not endpoint.attachment.pod:
            return
        key = str(endpoint.pod)
        with self._lock:
            self._mine[key] = endpoint
        self._outbox.submit(("endpoint", key), lambda: self._write_endpoint(key))

    def endpoint_gone(self, endpoint: LocalEndpoint) -> None:
        key = str(endpoint.pod)
        with self._lock:
            current = self._mine.get(key)
            if current is None or current.id != endpoint.id:
                return  # a newer sandbox of the same pod has taken its place
            del self._mine[key]
        self._outbox.submit(("endpoint", key), lambda: self._delete_endpoint(endpoint))

    def endpoint_seen(self, key: str, endpoint: Endpoint | None) -> None:
        with self._lock:
            mine = self._mine.get(key)
        if mine is None:
            if endpoint is not None and self._engine.own_address == endpoint.node_address:
                self._outbox.submit(
                    ("endpoint", key), lambda: self._delete_orphan(endpoint), delay=ORPHAN_SECONDS
                )
        elif endpoint is None or not _same(mine, endpoint, self._engine.own_address):
            self._outbox.submit(("endpoint", key), lambda: self._write_endpoint(key), delay=0.2)

    def _write_endpoint(self, key: str) -> None:
        with self._lock:
            endpoint = self._mine.get(key)
        if endpoint is None or not self._engine.own_address:
            return
        body = documents.endpoint_document(endpoint, self._node, self._engine.own_address)
        try:
            self._api.create(documents.endpoint_collection(endpoint.pod), body)
        except ApiError as fault:
            if fault.code == 404:
                return  # the namespace goes away, and so does the pod
            if fault.code == 403 and "being terminated" in fault.message:
                return
            if fault.code != 409:
                raise
            self._api.merge(documents.endpoint_path(endpoint.pod), body)

    def _delete_endpoint(self, endpoint: LocalEndpoint) -> None:
        """Delete the object if it is still this endpoint's: another node may run the pod's successor."""
        path = documents.endpoint_path(endpoint.pod)
        try:
            there = self._api.get(path)
            status = there.get("status") or {}
            networking = status.get("networking") or {}
            if status.get("id") != endpoint.id or networking.get("node") != self._engine.own_address:
                return
            self._api.delete(path, _precondition(there))
        except ApiError as fault:
            if fault.code not in (404, 409):
                raise

    def _delete_orphan(self, endpoint: Endpoint) -> None:
        with self._lock:
            if str(endpoint.name) in self._mine:
                return
        path = documents.endpoint_path(endpoint.name)
        try:
            there = self._api.get(path)
            networking = (there.get("status") or {}).get("networking") or {}
            if networking.get("node") == self._engine.own_address:
                self._api.delete(path, _precondition(there))
                self._log("info", "left-over endpoint deleted", endpoint=str(endpoint.name))
        except ApiError as fault:
            if fault.code not in (404, 409):
                raise

    # Identities

    def identity_wanted(self, endpoint: LocalEndpoint, labels: Labels) -> None:
        number = endpoint.id

        def allocate() -> None:
            identity = self._allocator.allocate(labels)
            running = endpoint.labels is not None and endpoint.identity != identity.number
            self._outbox.submit(
                ("identity", number),
                lambda: self._engine.call(lambda: self._engine.set_identity(number, identity)),
                delay=IDENTITY_GRACE_SECONDS if running else 0.0,
            )

        self._outbox.submit(("identity", number), allocate)

    # Tables

    def table_failed(self, table: str, fault: str) -> None:
        """A table is tried again every few seconds; that it cannot be written is told once an hour."""
        where, event = documents.table_event(self._node, table, fault)
        name = event["metadata"]["name"]
        if self._told.get(table) == name:
            return
        self._told[table] = name
        self._outbox.submit(("table", table), lambda: self._tell(where, event))

    def _tell(self, where: str, event: dict[str, Any]) -> None:
        try:
            self._api.create(where, event)
        except ApiError as fault:
            if fault.code not in (403, 404, 409):  # being deleted, or it has been told
                raise

    # Policies

    def policy_read(self, source: PolicySource, parsed: Parsed) -> None:
        key = ("policy", source.kind, str(source.name))
        self._outbox.submit(key, lambda: self._report_policy(source, parsed))

    def _report_policy(self, source: PolicySource, parsed: Parsed) -> None:
        if parsed.faults:
            where, event = documents.event_document(source, parsed.faults, bool(parsed.policies), self._node)
            self._tell(where, event)
        path = documents.policy_path(source.kind, source.name)
        if path is None:
            return
        wanted = documents.policy_status(source, parsed.faults, documents.now())
        try:
            current = self._api.get(path.removesuffix("/status"))
            same_version = (current.get("metadata") or {}).get("generation") == source.generation
            if same_version and not documents.same_condition(current, wanted):
                self._api.merge(path, wanted)
        except ApiError as fault:
            if fault.code != 404:
                raise


def _same(mine: LocalEndpoint, seen: Endpoint, node_address: str) -> bool:
    return (
        seen.identity == mine.identity
        and seen.addresses == (mine.attachment.address,)
        and seen.node_address == node_address
        and seen.named_ports == mine.ports
        and seen.uid == mine.attachment.pod_uid
    )


def _precondition(there: dict[str, Any]) -> dict[str, Any]:
    """Delete this very version or nothing."""
    metadata = there.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": metadata.get("uid"), "resourceVersion": metadata.get("resourceVersion")},
    }


def endpoint_name(key: str) -> Name:
    """The name of a "namespace/name" key."""
    namespace, _, name = key.partition("/")
    return Name(namespace, name)

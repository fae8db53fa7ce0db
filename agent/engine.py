"""The one thread that owns the model and the tables: changes in, differences out.

Planes and CNI requests put work into its inbox; it takes what has gathered, updates the model, compiles
what that concerns, and writes the difference. A caller of `call` is answered when its change is in the
kernel.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from agent import addresses
from agent.addresses import prefix_key
from agent.cluster import Cluster, put
from agent.effects import Effects, NotReadyError, Settings
from agent.endpoints import LocalEndpoint, belongs, named_ports, namespace_flags
from agent.identity.allocator import IdentityAllocator
from agent.identity.labels import address_labels, forged, identity_labels
from agent.identity.reserved import RESERVED, is_local
from agent.ipam import Ipam
from agent.kernel import Kernel
from agent.model.objects import (
    Endpoint,
    EndpointSlice,
    Identity,
    Labels,
    Name,
    Node,
    Pod,
    PolicySource,
    Service,
)
from agent.planes.base import Change, Event, Kind, Synced
from agent.policy import repository
from agent.policy.compile import NamedPorts
from agent.policy.entries import Entries, entries
from agent.policy.rules import Parsed
from agent.services.book import ServiceBook
from agent.services.compile import compile_host_ports
from agent.state import (
    OWNER_ENDPOINT,
    OWNER_LOCAL,
    OWNER_NODE,
    OWNER_RANGES,
    OWNER_SERVICES,
    NodeState,
)
from datapath.tables import CacheEntry

T = TypeVar("T")
IDLE_SECONDS = 1.0
BATCH = 1000
API_SERVICE = "default/kubernetes"
POLICY_KINDS = {
    Kind.NETWORK_POLICY: "NetworkPolicy",
    Kind.CILIUM_POLICY: "CiliumNetworkPolicy",
    Kind.CILIUM_CLUSTER_POLICY: "CiliumClusterwideNetworkPolicy",
}


class Engine:
    """See the module. Public methods may be called from any thread unless they say otherwise."""

    def __init__(
        self,
        settings: Settings,
        kernel: Kernel,
        ipam: Ipam,
        allocator: IdentityAllocator,
        log: Callable[..., None],
    ) -> None:
        self.settings = settings
        self.cluster = Cluster()
        self.policies = repository.Repository([IPv4Network(settings.pods_range)])
        self.local: dict[int, LocalEndpoint] = {}
        self.parsed: dict[tuple[str, str], Parsed] = {}
        self.effects: Effects | None = None
        self._kernel = kernel
        self._ipam = ipam
        self._allocator = allocator
        self._log = log
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._after: list[Callable[[], None]] = []
        self._missing: set[Kind] = set()
        self.own_address = ""
        self._dirty_endpoints: set[Hashable] = set()
        self._renamed: dict[IPv4Address, int] = {}
        self._splitting: frozenset[IPv4Network] = frozenset()
        self._pod_known = threading.Condition()
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.state = NodeState(kernel, self._table_fault)
        self._services = ServiceBook(self.cluster, settings.node, self.state.services.wanted)
        self.table_faults: dict[str, int] = {}
        self.forging: dict[str, list[str]] = {}
        self.last_flush = 0.0

    # From other threads

    def start(self, kinds: frozenset[Kind], restored: Sequence[LocalEndpoint]) -> None:
        """Read the maps, take over what a former agent left, and begin. Raises OSError.

        Nothing is written before all of `kinds` have been reported in full.
        """
        self._missing = set(kinds)
        self.state.adopt()
        self.policies.ranges.adopt(
            {
                IPv4Network((key.address.packed, key.prefix - 96)): value.identity
                for key, value in self._kernel.ipcache.items()
                if is_local(value.identity) and key.address.version == 4
            }
        )
        for endpoint in restored:
            self._enter(endpoint)
        self._thread.start()

    def stop(self) -> None:
        """End after the work at hand. The kernel keeps what it has."""
        self._stop.set()
        self._inbox.put(lambda: None)
        self._thread.join(timeout=10)

    def submit(self, events: Sequence[Event]) -> None:
        """Changes of the model (the planes' sink)."""
        self._inbox.put(lambda: self._take_in(events))

    def call(self, work: Callable[[], T], seconds: float = 30.0) -> T:
        """Run `work` on the engine's thread; returns its result once its effect is in the kernel.

        Raises what `work` raises, and NotReadyError if a table could not be written meanwhile.
        """
        future: Future[T] = Future()

        def step() -> None:
            try:
                result = work()
            except BaseException as fault:
                future.set_exception(fault)
            else:
                self._after.append(lambda: self._answer(future, result))

        self._inbox.put(step)
        return future.result(timeout=seconds)

    def ask(self, question: Callable[[], T], seconds: float = 5.0) -> T:
        """Run a read-only `question` on the engine's thread."""
        future: Future[T] = Future()

        def step() -> None:
            try:
                future.set_result(question())
            except BaseException as fault:
                future.set_exception(fault)

        self._inbox.put(step)
        return future.result(timeout=seconds)

    @property
    def ready(self) -> bool:
        """Whether the tables have been brought in step with the cluster once."""
        return self._ready.is_set()

    def wait_ready(self, seconds: float) -> bool:
        return self._ready.wait(seconds)

    def wait_pod(self, name: Name, uid: str, address: str, seconds: float) -> tuple[Pod, Labels] | None:
        """The pod and the labels of its identity at `address`, as soon as it is known; None if never."""

        def look() -> tuple[Pod, Labels] | None:
            pod = self.cluster.pod(name, uid)
            namespace = self.cluster.namespaces.get(name.namespace)
            if not pod or not namespace:
                return None
            return pod, identity_labels(pod, namespace, address_labels(address, self._splitting))

        deadline = time.monotonic() + seconds
        with self._pod_known:
            while (found := look()) is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._pod_known.wait(left):
                    return look()
            return found

    # On the engine's thread: endpoints

    def put_endpoint(self, endpoint: LocalEndpoint) -> None:
        """A local endpoint is new or different. (Engine's thread.)"""
        self._enter(endpoint)
        if self.effects:
            self.effects.endpoint_changed(endpoint)

    def remove_endpoint(self, number: int) -> LocalEndpoint | None:
        """A local endpoint is gone. (Engine's thread.)"""
        endpoint = self.local.pop(number, None)
        if endpoint is None:
            return None
        self.state.forget((OWNER_LOCAL, str(number)))
        self.state.policies.want(number, None)
        self.policies.put_endpoint(number, None)
        self._dirty_endpoints |= self.policies.put_holder((OWNER_LOCAL, number), 0, (), ())
        self._dirty_endpoints.discard(number)
        if self.effects:
            self.effects.endpoint_gone(endpoint)
        return endpoint

    def _enter(self, endpoint: LocalEndpoint) -> None:
        number = endpoint.id
        before = self.local.get(number)
        if before is not None and before.identity != endpoint.identity:
            self._renamed[endpoint.address] = endpoint.identity
        self.local[number] = endpoint
        owner = (OWNER_LOCAL, str(number))
        self.state.endpoints.wanted.put(owner, endpoint.entries())
        self.state.ipcache.wanted.put(owner, endpoint.cache())
        self.state.namespaces.wanted.put(owner, endpoint.namespaces())
        self.policies.put_endpoint(number, endpoint.labels, endpoint.ports)
        if endpoint.identity in RESERVED or endpoint.labels is None:
            pass  # reserved identities are known from the start; an unknown one comes from its object
        else:
            known = Identity(endpoint.identity, endpoint.labels)
            self._dirty_endpoints |= self.policies.put_identity(endpoint.identity, known)
        self._dirty_endpoints |= self.policies.put_holder(
            (OWNER_LOCAL, number), endpoint.identity, [endpoint.attachment.address], endpoint.ports
        )
        self._dirty_endpoints.add(number)
        self._host_ports(endpoint)

    def _host_ports(self, endpoint: LocalEndpoint) -> None:
        pod = self.cluster.pod(endpoint.pod, endpoint.attachment.pod_uid)
        own = self.cluster.nodes.get(self.settings.node)
        frontends = compile_host_ports(pod, endpoint.attachment.address, own.addresses) if pod and own else {}
        self.state.services.wanted.put((OWNER_LOCAL, str(endpoint.id)), frontends)

    # The loop

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Exception as fault:  # the tables stand as they are; the next change tries again
                self._log("error", "engine fault", fault=repr(fault), exc_info=True)
                time.sleep(0.1)

    def _turn(self) -> None:
        try:
            work = self._inbox.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            if self.ready and self.state.must_retry():
                self._flush()
            return
        for _ in range(BATCH):
            try:
                work()
            except Exception as fault:
                self._log("error", "change not taken in", fault=repr(fault), exc_info=True)
            try:
                work = self._inbox.get_nowait()
            except queue.Empty:
                break
        else:
            self._inbox.put(work)
        if not self.ready and not self._missing and self._knows_itself():
            self._begin()
        if self.ready:
            self._flush()
        after, self._after = self._after, []
        for answer in after:
            answer()

    def _answer(self, future: Future[T], result: T) -> None:
        if not self.ready:
            future.set_exception(NotReadyError("the cluster is not fully known yet"))
        elif self.state.faults:
            table, fault = next(iter(self.state.faults.items()))
            future.set_exception(NotReadyError(f"table {table} cannot be written: {fault}"))
        else:
            future.set_result(result)

    def _knows_itself(self) -> bool:
        own = self.cluster.nodes.get(self.settings.node)
        return own is not None and bool(addresses.pod_ranges(own)) and addresses.underlay(own) is not None

    def _begin(self) -> None:
        """Everything is known once: take up what was left open until now."""
        self.state.ipcache.wanted.put(
            (OWNER_SERVICES,), addresses.compile_ranges([self.settings.services_range])
        )
        for endpoint in list(self.local.values()):
            self._relabel(endpoint)
        self._ready.set()
        if self.effects:  # what the last agent may not have come to follow up on
            self.effects.policies_moved(set(self.local))
        self._log("info", "the model is complete", endpoints=len(self.local))

    def _flush(self) -> None:
        health = self._services.compile()
        if health is not None and self.effects:
            self.effects.health_changed(health)
        ranges = {
            prefix_key(network): CacheEntry(identity=number)
            for network, number in self.policies.ranges.in_use().items()
        }
        self.state.ipcache.wanted.put((OWNER_RANGES,), ranges)
        dirty, self._dirty_endpoints = self._dirty_endpoints, set()
        same: dict[tuple[int, NamedPorts], Entries] = {}  # endpoints of one identity share their policy
        for endpoint in [e for number, e in self.local.items() if number in dirty]:
            kind = (endpoint.identity, endpoint.ports)
            if endpoint.labels is None:
                self.state.policies.want(endpoint.id, {})
                continue
            if kind not in same:
                same[kind] = entries(self.policies.compile(endpoint.id))
            self.state.policies.want(endpoint.id, same[kind])
        here = [e.id for e in self.local.values() if e.address in self._renamed]
        moved = self.state.flush(here)
        self._dirty_endpoints |= self.policies.forget_unused_ranges()
        self.last_flush = time.monotonic()
        renamed, self._renamed = self._renamed, {}
        if self.effects:
            if moved:
                self.effects.policies_moved(moved)
            if renamed:
                self.effects.identities_moved(renamed)

    def _table_fault(self, table: str, fault: OSError) -> None:
        self.table_faults[table] = self.table_faults.get(table, 0) + 1
        self._log("error", "table cannot be written", table=table, fault=str(fault))
        if self.effects:
            self.effects.table_failed(table, str(fault))

    # Changes of the model

    def _take_in(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Synced):
                self._missing.discard(event.kind)
            else:
                self._change(event)
        if any(event.kind in (Kind.POD, Kind.NAMESPACE) for event in events):
            with self._pod_known:
                self._pod_known.notify_all()

    def _change(self, change: Change) -> None:
        value: Any = change.value
        if change.kind in POLICY_KINDS:
            self._policy_changed((POLICY_KINDS[change.kind], change.key), value)
        elif change.kind == Kind.SLICE:
            self._slice_changed(change.key, value)
        else:
            handlers: dict[Kind, Callable[[str, Any], None]] = {
                Kind.NAMESPACE: self._namespace_changed,
                Kind.NODE: self._node_changed,
                Kind.POD: self._pod_changed,
                Kind.SERVICE: self._service_changed,
                Kind.IDENTITY: self._identity_changed,
                Kind.ENDPOINT: self._endpoint_changed,
            }
            handlers[change.kind](change.key, value)

    def _slice_changed(self, key: str, value: EndpointSlice | None) -> None:
        concerned = self.cluster.put_slice(key, value)
        self._services.changed(concerned)
        if API_SERVICE in concerned:
            addresses_now = {
                address
                for one in self.cluster.slices_of.get(API_SERVICE, {}).values()
                for entry in one.endpoints
                for address in entry.addresses
            }
            self._dirty_endpoints |= self.policies.put_api_servers(addresses_now)

    def _service_changed(self, key: str, service: Service | None) -> None:
        put(self.cluster.services, key, service)
        self._services.changed([key])

    def _namespace_changed(self, key: str, namespace: Any) -> None:
        put(self.cluster.namespaces, key, namespace)
        for endpoint in list(self.local.values()):
            if endpoint.attachment.namespace == key:
                self._relabel(endpoint)

    def _node_changed(self, key: str, node: Node | None) -> None:
        put(self.cluster.nodes, key, node)
        own = key == self.settings.node
        cache, nodes = addresses.compile_node(node, own) if node else ({}, {})
        self.state.ipcache.wanted.put((OWNER_NODE, key), cache)
        self.state.nodes.wanted.put((OWNER_NODE, key), nodes)
        if own and node is not None:
            self.own_address = node.addresses[0] if node.addresses else ""
            for name, endpoint in list(self.cluster.endpoints.items()):
                self._endpoint_changed(name, endpoint)
            self._ipam.set_ranges(node.pod_ranges)
            self._dirty_endpoints |= self.policies.put_own_node(node.addresses)
            for local in self.local.values():
                self._host_ports(local)
        others = [n for n in self.cluster.nodes.values() if n.name != self.settings.node]
        self._dirty_endpoints |= self.policies.put_nodes([a for n in others for a in n.addresses])
        this = self.cluster.nodes.get(self.settings.node)
        if self.effects and this is not None:
            self.effects.nodes_changed(this, others)

    def _pod_changed(self, key: str, pod: Pod | None) -> None:
        put(self.cluster.pods, key, pod)
        pretended = forged(pod) if pod else []
        if pretended and self.forging.get(key) != pretended:
            self._log("warning", "forged labels are left out", pod=key, labels=pretended)
        put(self.forging, key, pretended or None)
        if pod is None:
            return  # the runtime's DEL ends its endpoint
        for endpoint in list(self.local.values()):
            if belongs(endpoint.attachment, pod):
                self._relabel(endpoint)
                self._host_ports(self.local[endpoint.id])

    def _relabel(self, endpoint: LocalEndpoint) -> None:
        """Bring the endpoint's labels and identity in step with its pod and namespace."""
        pod = self.cluster.pod(endpoint.pod, endpoint.attachment.pod_uid)
        namespace = self.cluster.namespaces.get(endpoint.attachment.namespace)
        current = self.policies.identity(endpoint.identity)
        if endpoint.labels is None and current is not None:
            # What it was when the last agent ended; anything newer replaces this below.
            self._replace(endpoint, current)
            endpoint = self.local[endpoint.id]
        if pod is None or namespace is None:
            return
        extra = address_labels(endpoint.attachment.address, self._splitting)
        labels = identity_labels(pod, namespace, extra)
        if endpoint.labels == labels:
            if (named_ports(pod), namespace_flags(pod)) != (endpoint.ports, endpoint.flags):
                self._replace(endpoint, Identity(endpoint.identity, labels))
            return
        if self.effects:
            self.effects.identity_wanted(endpoint, labels)

    def _replace(self, endpoint: LocalEndpoint, identity: Identity) -> None:
        pod = self.cluster.pod(endpoint.pod, endpoint.attachment.pod_uid)
        if pod is not None:
            endpoint = replace(endpoint, ports=named_ports(pod), flags=namespace_flags(pod))
        self.put_endpoint(replace(endpoint, identity=identity.number, labels=identity.labels))

    def set_identity(self, number: int, identity: Identity) -> None:
        """The identity that `identity_wanted` asked for is there. (Engine's thread.)"""
        endpoint = self.local.get(number)
        if endpoint is not None:
            self._replace(endpoint, identity)

    def _identity_changed(self, key: str, identity: Identity | None) -> None:
        self._allocator.observe(key, identity)
        number = int(key) if key.isdecimal() else 0
        users = [e for e in self.local.values() if e.identity == number and e.labels is not None]
        if identity is None and users:
            # Still used here: it stands until its endpoints are gone, and its object is made again.
            if self.effects and users[0].labels is not None:
                self.effects.identity_wanted(users[0], users[0].labels)
            return
        self._dirty_endpoints |= self.policies.put_identity(number, identity)
        for endpoint in list(self.local.values()):
            if endpoint.identity == number and endpoint.labels is None:
                self._relabel(endpoint)

    def _endpoint_changed(self, key: str, endpoint: Endpoint | None) -> None:
        before = self.cluster.endpoints.get(key)
        put(self.cluster.endpoints, key, endpoint)
        if before and endpoint and before.identity != endpoint.identity:
            self._renamed.update({IPv4Address(a): endpoint.identity for a in endpoint.addresses})
        remote = endpoint is not None and endpoint.node_address != self.own_address
        cache = addresses.compile_endpoint(endpoint, self.own_address) if endpoint else {}
        self.state.ipcache.wanted.put((OWNER_ENDPOINT, key), cache)
        holder = (OWNER_ENDPOINT, key)
        if endpoint is not None and remote:
            self._dirty_endpoints |= self.policies.put_holder(
                holder, endpoint.identity, endpoint.addresses, endpoint.named_ports
            )
        else:
            self._dirty_endpoints |= self.policies.put_holder(holder, 0, (), ())
        if self.effects:
            self.effects.endpoint_seen(key, endpoint)

    def _policy_changed(self, key: tuple[str, str], source: PolicySource | None) -> None:
        put(self.cluster.policies, key, source)
        parsed = repository.parse(source) if source is not None else None
        put(self.parsed, key, parsed)
        self._dirty_endpoints |= self.policies.put_policy(key, parsed)
        splitting = self.policies.splitting_networks()
        if splitting != self._splitting:
            self._splitting = splitting
            if self.ready:
                for endpoint in list(self.local.values()):
                    self._relabel(endpoint)
        if source is not None and parsed is not None and self.effects:
            self.effects.policy_read(source, parsed)

"""The Kubernetes plane: which resources an agent watches, and the threads that do it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.planes.base import Kind, Sink
from agent.planes.kubernetes import parse
from agent.planes.kubernetes.client import Api
from agent.planes.kubernetes.reflector import Reflector, Resource

CILIUM = "/apis/cilium.io/v2"


def resources(node: str) -> tuple[Resource, ...]:
    """What the agent of `node` watches. Only its own pods: those of others are CiliumEndpoints."""
    return (
        Resource(Kind.NAMESPACE, "/api/v1/namespaces", parse.namespace),
        Resource(Kind.NODE, "/api/v1/nodes", parse.node),
        Resource(Kind.POD, "/api/v1/pods", parse.pod, {"fieldSelector": f"spec.nodeName={node}"}),
        Resource(Kind.SERVICE, "/api/v1/services", parse.service),
        Resource(Kind.SLICE, "/apis/discovery.k8s.io/v1/endpointslices", parse.endpoint_slice),
        Resource(
            Kind.NETWORK_POLICY,
            "/apis/networking.k8s.io/v1/networkpolicies",
            functools.partial(parse.policy, "NetworkPolicy"),
        ),
        Resource(Kind.IDENTITY, f"{CILIUM}/ciliumidentities", parse.identity),
        Resource(Kind.ENDPOINT, f"{CILIUM}/ciliumendpoints", parse.endpoint),
        Resource(
            Kind.CILIUM_POLICY,
            f"{CILIUM}/ciliumnetworkpolicies",
            functools.partial(parse.policy, "CiliumNetworkPolicy"),
        ),
        Resource(
            Kind.CILIUM_CLUSTER_POLICY,
            f"{CILIUM}/ciliumclusterwidenetworkpolicies",
            functools.partial(parse.policy, "CiliumClusterwideNetworkPolicy"),
        ),
    )


@dataclass
class WatchState:
    """How one watch is doing, for `underpass status` and the metrics. `since` is a wall-clock time."""

    fault: str = ""
    since: float = 0.0
    faults: int = 0
    unreadable: int = 0


class KubernetesPlane:
    """Runs one reflector a resource, each in a thread of its own."""

    name = "kubernetes"

    def __init__(self, api: Api, node: str, log: Callable[..., None]) -> None:
        """`log(level, event, **fields)` is the structured log."""
        self._api = api
        self._resources = resources(node)
        self._log = log
        self._stop = threading.Event()
        self.kinds = frozenset(resource.kind for resource in self._resources)
        self.watches = {kind: WatchState() for kind in sorted(self.kinds)}

    def start(self, sink: Sink) -> None:
        for resource in self._resources:
            note = functools.partial(self._note, resource.kind)
            reflector = Reflector(self._api, resource, sink, note)
            threading.Thread(
                target=self._guard, args=(reflector,), name=f"watch-{resource.kind}", daemon=True
            ).start()

    def stop(self) -> None:
        """Ask the threads to end; a watch that waits for its server ends with the process."""
        self._stop.set()

    @property
    def reachable(self) -> bool:
        return not any(state.fault for state in self.watches.values())

    def _guard(self, reflector: Reflector) -> None:
        while not self._stop.is_set():
            try:
                reflector.run(self._stop)
            except Exception as fault:  # a watch must not die and leave the node blind
                self._log("error", "watch failed", fault=repr(fault), exc_info=True)
                self._stop.wait(1.0)

    def _note(self, kind: Kind, what: str, text: str) -> None:
        state = self.watches[kind]
        if what == "fault":
            state.fault, state.since, state.faults = text, time.time(), state.faults + 1
            self._log("warning", "watch interrupted", resource=str(kind), fault=text)
        elif what == "recovered":
            away = round(time.time() - state.since, 1)
            state.fault = ""
            self._log("info", "watch resumed", resource=str(kind), away_seconds=away)
        elif what == "gone":
            self._log("info", "the watch's history is gone: listing again", resource=str(kind))
        else:
            state.unreadable += 1
            self._log("error", "object cannot be read", resource=str(kind), fault=text)

"""What a plane gives and what it needs: a stream of changes into one sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Kind(StrEnum):
    """The kinds of model values that a plane can report."""

    NAMESPACE = "namespace"
    NODE = "node"
    POD = "pod"
    SERVICE = "service"
    SLICE = "slice"
    IDENTITY = "identity"
    ENDPOINT = "endpoint"
    NETWORK_POLICY = "networkpolicy"
    CILIUM_POLICY = "ciliumnetworkpolicy"
    CILIUM_CLUSTER_POLICY = "ciliumclusterwidenetworkpolicy"


@dataclass(frozen=True, slots=True)
class Change:
    """One value is new or different (`value`), or gone (None). `key` is "namespace/name" or "name"."""

    kind: Kind
    key: str
    value: object | None


@dataclass(frozen=True, slots=True)
class Synced:
    """All that there was of `kind` when the plane began has been reported."""

    kind: Kind


Event = Change | Synced
Sink = Callable[[Sequence[Event]], None]


class Plane(Protocol):
    """A source of model values. `start` returns at once; events arrive from threads of the plane."""

    name: str
    kinds: frozenset[Kind]

    def start(self, sink: Sink) -> None: ...

    def stop(self) -> None: ...

"""The pinned maps as the agent uses them: the seam between what should be and what the kernel holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.policy.entries import Entries
from agent.sync import Map
from datapath import tables


class PolicyStore(Protocol):
    """The tries of the endpoints' policies. Every method raises OSError when the kernel refuses."""

    def endpoints(self) -> set[int]:
        """The endpoints that have a trie."""

    def read(self, endpoint: int) -> Entries | None:
        """The content of an endpoint's trie; None where there is none."""

    def replace(self, policies: Mapping[int, Entries]) -> None:
        """Put new tries in the place of the old ones in one step, then move the revisions on."""

    def delete(self, endpoint: int) -> bool:
        """Take the trie away; the endpoint is closed from then on."""


@dataclass(frozen=True)
class Kernel:
    """All of the datapath that the agent touches."""

    endpoints: Map[tables.AddressKey, tables.Endpoint]
    ipcache: Map[tables.PrefixKey, tables.CacheEntry]
    nodes: Map[tables.AddressKey, tables.Node]
    namespaces: Map[tables.NamespaceKey, tables.Namespace]
    services: Map[tables.ServiceKey, tables.Service]
    backends: Map[tables.BackendKey, tables.Backend]
    members: Map[tables.MemberKey, tables.Member]
    policies: PolicyStore

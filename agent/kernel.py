"""What the engine asks of the pinned maps: the seam between what should be and what the kernel holds."""

from __future__ import annotations

from collections.abc import Mapping
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

    def touch(self, endpoint: int) -> int:
        """Have the endpoint's connections judged again; returns its new revision."""

    def delete(self, endpoint: int) -> bool:
        """Take the trie away; the endpoint is closed from then on."""


class Kernel(Protocol):
    """What the engine keeps in step. The pinned maps as `datapath.maps` opens them are one."""

    @property
    def endpoints(self) -> Map[tables.AddressKey, tables.Endpoint]: ...

    @property
    def ipcache(self) -> Map[tables.PrefixKey, tables.CacheEntry]: ...

    @property
    def nodes(self) -> Map[tables.AddressKey, tables.Node]: ...

    @property
    def namespaces(self) -> Map[tables.NamespaceKey, tables.Namespace]: ...

    @property
    def services(self) -> Map[tables.ServiceKey, tables.Service]: ...

    @property
    def backends(self) -> Map[tables.BackendKey, tables.Backend]: ...

    @property
    def members(self) -> Map[tables.MemberKey, tables.Member]: ...

    @property
    def policies(self) -> PolicyStore: ...

"""The pinned maps in memory: what the agent's parts write, and what the programs would then see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from agent.policy.entries import Entries
from datapath import tables

K = TypeVar("K")
V = TypeVar("V")


class FakeMap(Generic[K, V]):
    """A map in memory that can be full, and counts its writes."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.content: dict[K, V] = {}
        self.room = room
        self.writes = 0
        self.before_write: Any = None

    def items(self) -> Iterable[tuple[K, V]]:
        return list(self.content.items())

    def put_many(self, entries: Mapping[K, V]) -> None:
        if self.before_write:
            self.before_write()
        for at, value in entries.items():
            if at not in self.content and len(self.content) >= self.room:
                raise OSError(7, "Argument list too long")
            self.content[at] = value
            self.writes += 1

    def delete_many(self, keys: Iterable[K]) -> None:
        if self.before_write:
            self.before_write()
        for at in keys:
            self.content.pop(at, None)
            self.writes += 1


class FakePolicies:
    """Policy tries in memory, with the revision that each replacement moves."""

    def __init__(self) -> None:
        self.content: dict[int, Entries] = {}
        self.revisions: dict[int, int] = {}
        self.room = 1 << 20
        self.replaced: list[set[int]] = []

    def endpoints(self) -> set[int]:
        return set(self.content)

    def read(self, endpoint: int) -> Entries | None:
        return self.content.get(endpoint)

    def replace(self, policies: Mapping[int, Entries]) -> None:
        if any(len(entries) > self.room for entries in policies.values()):
            raise OSError(7, "Argument list too long")
        self.replaced.append(set(policies))
        for endpoint, entries in policies.items():
            self.content[endpoint] = dict(entries)
            self.revisions[endpoint] = self.revisions.get(endpoint, 0) + 1

    def touch(self, endpoint: int) -> int:
        self.revisions[endpoint] = self.revisions.get(endpoint, 0) + 1
        return self.revisions[endpoint]

    def delete(self, endpoint: int) -> bool:
        return self.content.pop(endpoint, None) is not None


class FakeKernel:
    """One node's maps."""

    def __init__(self) -> None:
        self.endpoints: FakeMap[tables.AddressKey, tables.Endpoint] = FakeMap()
        self.ipcache: FakeMap[tables.PrefixKey, tables.CacheEntry] = FakeMap()
        self.nodes: FakeMap[tables.AddressKey, tables.Node] = FakeMap()
        self.namespaces: FakeMap[tables.NamespaceKey, tables.Namespace] = FakeMap()
        self.services: FakeMap[tables.ServiceKey, tables.Service] = FakeMap()
        self.backends: FakeMap[tables.BackendKey, tables.Backend] = FakeMap()
        self.members: FakeMap[tables.MemberKey, tables.Member] = FakeMap()
        self.policies = FakePolicies()

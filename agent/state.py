"""All tables of a node as they should be, in the order in which they may be written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from agent.kernel import Kernel
from agent.policy.entries import Entries
from agent.sync import ServiceSync, TableSync
from agent.tables import Owner
from datapath import tables

RETRY_SECONDS = 2.0
# Who wins where two owners want the same key of ipcache: the smaller first word.
OWNER_NODE = "0-node"
OWNER_LOCAL = "1-local"
OWNER_ENDPOINT = "2-endpoint"
OWNER_SERVICES = "3-services"
OWNER_RANGES = "4-ranges"


class PolicySync:
    """Keeps the policy tries equal to the wanted ones. A trie is replaced whole or not at all."""

    def __init__(self, kernel: Kernel, report: Callable[[str, OSError], None]) -> None:
        self._store = kernel.policies
        self._report = report
        self._there: dict[int, Entries | None] = {}
        self._wanted: dict[int, Entries] = {}
        self._changed: set[int] = set()

    def adopt(self) -> None:
        for number in self._store.endpoints():
            try:
                self._there[number] = self._store.read(number)
            except OSError:
                self._there[number] = None  # unlike anything that is wanted: it will be replaced
        self._changed |= set(self._there) | set(self._wanted)

    def want(self, endpoint: int, entries: Entries | None) -> None:
        """What an endpoint's policy should say; None when there is no such endpoint any more."""
        if entries is None:
            self._wanted.pop(endpoint, None)
        else:
            self._wanted[endpoint] = entries
        self._changed.add(endpoint)

    def wanted(self, endpoint: int) -> Entries | None:
        return self._wanted.get(endpoint)

    @property
    def size(self) -> int:
        return sum(len(entries or ()) for entries in self._there.values())

    def put(self) -> set[int]:
        """Write new and changed policies; returns the endpoints whose policy moved."""
        due = {
            number: self._wanted[number]
            for number in self._changed
            if number in self._wanted and self._there.get(number) != self._wanted[number]
        }
        self._changed = {number for number in self._changed if number not in self._wanted}
        if not due:
            return set()
        try:
            self._store.replace(due)
            self._there.update(due)
            return set(due)
        except OSError as fault:
            if len(due) == 1:
                self._fail(next(iter(due)), fault)
                return set()
        return self._put_singly(due)

    def _put_singly(self, due: dict[int, Entries]) -> set[int]:
        """Together they do not fit: each that does is written."""
        moved: set[int] = set()
        for number, entries in due.items():
            try:
                self._store.replace({number: entries})
                self._there[number] = entries
                moved.add(number)
            except OSError as fault:
                self._fail(number, fault)
        return moved

    def _fail(self, number: int, fault: OSError) -> None:
        """The new policy does not fit: rather nothing passes than what the old one allowed."""
        self._report("policies", fault)
        self._changed.add(number)
        if self._there.get(number) == {}:
            return
        try:
            self._store.replace({number: {}})
            self._there[number] = {}
        except OSError:
            try:
                self._store.delete(number)
                self._there.pop(number, None)
            except OSError as again:
                self._report("policies", again)

    def judge_again(self, endpoints: Iterable[int]) -> set[int]:
        """Move the revisions of endpoints that have a policy; returns which."""
        moved = {number for number in endpoints if number in self._there}
        for number in moved:
            try:
                self._store.touch(number)
            except OSError as fault:
                self._report("revisions", fault)
        return moved

    def drop(self) -> None:
        """Delete the policies of endpoints that are gone."""
        for number in sorted(n for n in self._changed if n not in self._wanted):
            try:
                if number in self._there:
                    self._store.delete(number)
                    del self._there[number]
                self._changed.discard(number)
            except OSError as fault:
                self._report("policies", fault)


class NodeState:
    """The wanted tables of this node and their way into the kernel."""

    def __init__(self, kernel: Kernel, report: Callable[[str, OSError], None]) -> None:
        """`report(table, fault)` hears of each table that could not be written."""

        def noted(table: str, fault: OSError) -> None:
            self.faults[table] = fault
            report(table, fault)

        self.faults: dict[str, OSError] = {}
        self._retry_at = 0.0
        self.endpoints: TableSync[tables.AddressKey, tables.Endpoint] = TableSync(
            "endpoints", kernel.endpoints, noted
        )
        self.ipcache: TableSync[tables.PrefixKey, tables.CacheEntry] = TableSync(
            "ipcache", kernel.ipcache, noted
        )
        self.nodes: TableSync[tables.AddressKey, tables.Node] = TableSync("nodes", kernel.nodes, noted)
        self.namespaces: TableSync[tables.NamespaceKey, tables.Namespace] = TableSync(
            "namespaces", kernel.namespaces, noted
        )
        self.services = ServiceSync(kernel.services, kernel.backends, kernel.members, noted)
        self.policies = PolicySync(kernel, noted)

    def adopt(self) -> None:
        """Read all maps. Raises OSError."""
        for table in (
            self.endpoints,
            self.ipcache,
            self.nodes,
            self.namespaces,
            self.services,
            self.policies,
        ):
            table.adopt()

    def forget(self, owner: Owner) -> None:
        """Want nothing of what `owner` wanted."""
        for table in (self.endpoints, self.ipcache, self.namespaces, self.services):
            table.wanted.put(owner, {})

    def flush(self, renamed: Iterable[int] = ()) -> set[int]:
        """Bring the kernel to what is wanted; returns the endpoints whose policy moved.

        What lets traffic in is written after what judges it, and is taken away before it. `renamed`
        endpoints have another identity: once it is written, their accelerated connections, of which no packet
        shows the new one, are to be judged again.
        """
        self.faults.clear()
        moved = self.policies.put()
        self.nodes.put()
        self.ipcache.put()
        self.services.flush()
        self.namespaces.put()
        self.endpoints.put()
        moved |= self.policies.judge_again(renamed)
        self.endpoints.drop()
        self.namespaces.drop()
        self.ipcache.drop()
        self.nodes.drop()
        self.policies.drop()
        self._retry_at = time.monotonic() + RETRY_SECONDS if self.faults else 0.0
        return moved

    def must_retry(self) -> bool:
        """Whether something could not be written and its time to be tried again has come."""
        return bool(self._retry_at) and time.monotonic() >= self._retry_at

    def sizes(self) -> dict[str, int]:
        """How many entries each table holds."""
        return {
            "endpoints": self.endpoints.size,
            "ipcache": self.ipcache.size,
            "nodes": self.nodes.size,
            "namespaces": self.namespaces.size,
            "services": self.services.size,
            "policies": self.policies.size,
        }

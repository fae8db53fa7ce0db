"""From tables as they should be to maps as they are: read once, then write differences.

Every function here may be called again after any failure or restart and ends in the same maps. What
cannot be written (a map that is full) is reported, stays wanted, and is tried again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from agent.services.compile import Backend, Frontend, backend_number
from agent.tables import Wanted
from datapath import tables

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Map(Protocol[K, V]):
    """A pinned map with typed keys and values. Every method raises OSError when the kernel refuses."""

    def items(self) -> Iterable[tuple[K, V]]: ...

    def put_many(self, entries: Mapping[K, V]) -> None: ...

    def delete_many(self, keys: Iterable[K]) -> None:
        """Delete; a key that is not there is no error."""


Report = Callable[[str, OSError], None]


class TableSync(Generic[K, V]):
    """Keeps one map equal to one wanted table. `put` and `drop` are apart, so that tables can be ordered."""

    def __init__(self, name: str, kernel: Map[K, V], report: Report) -> None:
        """`report(table, fault)` hears of what could not be written."""
        self.name = name
        self.wanted: Wanted[K, V] = Wanted()
        self._kernel = kernel
        self._report = report
        self._there: dict[K, V] = {}
        self._adopted = False
        self._leaving: set[K] = set()

    def adopt(self) -> None:
        """Take what the map holds now as the state to compare with; all of it is up for judgement."""
        self._there = dict(self._kernel.items())
        self._adopted = True
        self.wanted.again(set(self._there) | set(self.wanted.all()))

    @property
    def size(self) -> int:
        """How many entries the map holds, as far as this side knows."""
        return len(self._there)

    def put(self) -> int:
        """Write what is new or different; returns how many entries. What must go waits for `drop`."""
        assert self._adopted, f"{self.name} is written before it was read"
        changed = self.wanted.take()
        writes: dict[K, V] = {}
        for key in changed:
            value = self.wanted.get(key)
            if value is None:
                if key in self._there:
                    self._leaving.add(key)
            elif self._there.get(key) != value:
                writes[key] = value
        if not writes:
            return 0
        try:
            self._kernel.put_many(writes)
        except OSError as fault:
            self._put_singly(writes, fault)
        else:
            self._there.update(writes)
        return len(writes)

    def _put_singly(self, writes: dict[K, V], fault: OSError) -> None:
        """A batch failed: find out which entries fit, so that one does not keep out the others."""
        failed: set[K] = set()
        for key, value in writes.items():
            try:
                self._kernel.put_many({key: value})
                self._there[key] = value
            except OSError as single:
                failed.add(key)
                fault = single
        if failed:
            self.wanted.again(failed)
            self._report(self.name, fault)

    def drop(self) -> int:
        """Delete what is no longer wanted; returns how many entries."""
        gone = {key for key in self._leaving if self.wanted.get(key) is None}
        self._leaving.clear()
        if gone:
            try:
                self._kernel.delete_many(gone)
            except OSError as fault:
                self._leaving |= gone
                self._report(self.name, fault)
                return 0
            for key in gone:
                self._there.pop(key, None)
        return len(gone)


class ServiceSync:
    """Keeps services, backends and members equal to the wanted frontends.

    A frontend's backends change all at once: slots under a new id first, then the service entry that
    names the id, then the old id's slots go. Somebody who reads in between sees the old set or the new.
    """

    def __init__(
        self,
        services: Map[tables.ServiceKey, tables.Service],
        backends: Map[tables.BackendKey, tables.Backend],
        members: Map[tables.MemberKey, tables.Member],
        report: Report,
    ) -> None:
        self.wanted: Wanted[tables.ServiceKey, Frontend] = Wanted()
        self._services = services
        self._backends = backends
        self._members = members
        self._report = report
        self._there: dict[tables.ServiceKey, tuple[tables.Service, tuple[Backend, ...]]] = {}
        self._ids: set[int] = set()
        self._next = itertools.count(1)

    def adopt(self) -> None:
        """Read the three maps; slots and members that no service names are deleted."""
        slots: dict[int, dict[int, Backend]] = {}
        orphans: list[tables.BackendKey] = []
        services = dict(self._services.items())
        counts = {service.id: service.count for service in services.values()}
        for key, value in self._backends.items():
            if key.slot < counts.get(key.service, 0):
                slots.setdefault(key.service, {})[key.slot] = Backend(value.address, value.port)  # type: ignore[arg-type]
            else:
                orphans.append(key)
        self._backends.delete_many(orphans)
        self._members.delete_many([key for key, _ in self._members.items() if not counts.get(key.service, 0)])
        for service_key, service in services.items():
            held = slots.get(service.id, {})
            whole = tuple(held[slot] for slot in range(service.count) if slot in held)
            # An entry whose slots are not all there is kept as different from any that is wanted.
            self._there[service_key] = (service, whole if len(whole) == service.count else ())
        self._ids = set(counts)
        self._next = itertools.count(max(self._ids, default=0) + 1)
        self.wanted.again(set(services) | set(self.wanted.all()))

    @property
    def size(self) -> int:
        return len(self._there)

    def flush(self) -> int:
        """Write what changed; returns how many frontends."""
        changed = self.wanted.take()
        failed: set[tables.ServiceKey] = set()
        count = 0
        for key in changed:
            frontend = self.wanted.get(key)
            try:
                count += self._drop(key) if frontend is None else self._replace(key, frontend)
            except OSError as fault:
                failed.add(key)
                self._report("services", fault)
        self.wanted.again(failed)
        return count

    def _replace(self, key: tables.ServiceKey, frontend: Frontend) -> bool:
        before = self._there.get(key)
        if before and before[1] == frontend.backends and before[0] == _entry(before[0].id, frontend):
            return False
        number = self._free_id()
        entry = _entry(number, frontend)
        try:
            self._backends.put_many(
                {
                    tables.BackendKey(service=number, slot=slot): tables.Backend(
                        address=backend.address,
                        id=backend_number(backend, key.protocol),
                        port=backend.port,
                    )
                    for slot, backend in enumerate(frontend.backends)
                }
            )
            if frontend.affinity:
                self._members.put_many(
                    {
                        _member(number, backend, key.protocol): tables.Member(slot=slot)
                        for slot, backend in enumerate(frontend.backends)
                    }
                )
            self._services.put_many({key: entry})
        except OSError:
            self._forget(number, frontend.backends, key.protocol)
            raise
        self._there[key] = (entry, frontend.backends)
        self._ids.add(number)
        if before:
            self._forget(before[0].id, before[1], key.protocol, before[0].count)
        return True

    def _drop(self, key: tables.ServiceKey) -> bool:
        before = self._there.get(key)
        if before is None:
            return False
        self._services.delete_many([key])
        del self._there[key]
        self._forget(before[0].id, before[1], key.protocol, before[0].count)
        return True

    def _forget(self, number: int, backends: tuple[Backend, ...], protocol: int, count: int = 0) -> None:
        """Delete the slots and members of an id that no service names any more."""
        slots = max(count, len(backends))
        self._backends.delete_many([tables.BackendKey(service=number, slot=slot) for slot in range(slots)])
        self._members.delete_many([_member(number, backend, protocol) for backend in backends])
        self._ids.discard(number)

    def _free_id(self) -> int:
        for number in self._next:
            wrapped = (number - 1) % 0xFFFFFFFE + 1
            if wrapped not in self._ids:
                return wrapped
        raise AssertionError("the count has no end")


def _member(service: int, backend: Backend, protocol: int) -> tables.MemberKey:
    return tables.MemberKey(service=service, backend=backend_number(backend, protocol))


def _entry(number: int, frontend: Frontend) -> tables.Service:
    return tables.Service(
        id=number,
        affinity=frontend.affinity,
        affinity_seconds=frontend.affinity_seconds,
        count=len(frontend.backends),
        flags=frontend.flags,
    )

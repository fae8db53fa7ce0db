"""A map of records: a mapping from key records to value records, in the kernel."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from datapath import libbpf
from datapath.codec import Record

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)

BATCH = 1024


class TypedMap(Generic[K, V]):
    """Reads and writes one map. Owns its descriptor; `close` gives it back.

    Errors: OSError as the kernel gives it, ENOSPC or E2BIG when the map is full.
    """

    def __init__(self, fd: int, key: type[K], value: type[V]) -> None:
        self.fd = fd
        self._key = key
        self._value = value
        self._key_size = key.size()
        self._value_size = value.size()

    def get(self, key: K) -> V | None:
        """The value of a key, or None."""
        raw = libbpf.map_lookup(self.fd, key.pack(), self._value_size)
        return None if raw is None else self._value.unpack(raw)

    def put(self, key: K, value: V) -> None:
        """Write one entry."""
        libbpf.map_update(self.fd, key.pack(), value.pack())

    def delete(self, key: K) -> bool:
        """Delete one entry; False when there was none."""
        return libbpf.map_delete(self.fd, key.pack())

    def items(self) -> Iterator[tuple[K, V]]:
        """All entries, unordered; not a snapshot."""
        for key, value in libbpf.map_items(self.fd, self._key_size, self._value_size):
            yield self._key.unpack(key), self._value.unpack(value)

    def read(self) -> dict[K, V]:
        """All entries as a dictionary."""
        return dict(self.items())

    def put_many(self, entries: Mapping[K, V]) -> None:
        """Write many entries, some hundreds a system call."""
        packed = [(key.pack(), value.pack()) for key, value in entries.items()]
        for start in range(0, len(packed), BATCH):
            libbpf.map_update_many(self.fd, packed[start : start + BATCH])

    def delete_many(self, keys: Iterable[K]) -> None:
        """Delete many entries; those that are not there are passed over."""
        packed = [key.pack() for key in keys]
        for start in range(0, len(packed), BATCH):
            libbpf.map_delete_many(self.fd, packed[start : start + BATCH])

    def close(self) -> None:
        """Give the descriptor back; the pinned map stays."""
        os.close(self.fd)

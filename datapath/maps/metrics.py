"""Counters by reason and place, summed over CPUs."""

import os
import struct
from dataclasses import dataclass

from datapath import libbpf, reasons
from datapath.constants import METRIC_PLACES, Place, metric_index
from datapath.tables import Counter, EventBudget, Index


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and bytes of one reason at one place since the maps were made."""

    reason: reasons.Reason
    place: Place
    packets: int
    bytes: int


class Metrics:
    """The maps `metrics` and `event_budget`."""

    def __init__(self, fd: int, budget_fd: int) -> None:
        self.fd = fd
        self._budget_fd = budget_fd
        self._format = struct.Struct("=" + "QQ" * libbpf.possible_cpus())

    def read(self) -> list[Count]:
        """All counters that are not zero."""
        counts = []
        size = Counter.size() * libbpf.possible_cpus()
        for key, raw in libbpf.map_items(self.fd, Index.size(), size):
            number, place = divmod(Index.unpack(key).index, METRIC_PLACES)
            reason = reasons.by_number().get(number)
            values = self._format.unpack(raw)
            if reason is not None and place < len(Place) and any(values):
                counts.append(Count(reason, Place(place), sum(values[::2]), sum(values[1::2])))
        return counts

    def get(self, label: str, place: Place) -> int:
        """Packets of one reason (by its C name) at one place."""
        index = metric_index(reasons.by_label()[label].number, place)
        raw = libbpf.map_lookup(self.fd, Index(index=index).pack(), self._format.size)
        return sum(self._format.unpack(raw)[::2]) if raw else 0

    def events_lost(self) -> int:
        """Flow events that exceeded the budget."""
        size = EventBudget.size()
        raw = libbpf.map_lookup(self._budget_fd, Index(index=0).pack(), size * libbpf.possible_cpus()) or b""
        return sum(EventBudget.unpack(raw[at : at + size]).lost for at in range(0, len(raw), size))

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)
        os.close(self._budget_fd)

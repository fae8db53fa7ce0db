"""Senders that are to be plain TCP again: named in `departures`, taken out by the pinned iterator `leave`."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from datapath import libbpf
from datapath.constants import DepartureStep
from datapath.maps.typed import TypedMap
from datapath.reasons import Reason
from datapath.redirect_tables import Departure, SocketKey

LEAVE_LINK = "leave"
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1
_libc = ctypes.CDLL(None, use_errno=True)

Inside = Callable[[], AbstractContextManager[object]]


class Departures:
    """What `include/leave.h` does, one step at a time; the entries are the kernel's and outlive the agent."""

    def __init__(self, link: Path, entries: TypedMap[SocketKey, Departure]) -> None:
        self._link = link
        self.entries = entries
        self._settled: set[SocketKey] = set()

    @classmethod
    def open(cls, pins: Path) -> "Departures":
        """FileNotFoundError: the loader has not been run."""
        entries = TypedMap(libbpf.open_pinned(pins / "maps" / "departures"), SocketKey, Departure)
        return cls(pins / "links" / LEAVE_LINK, entries)

    def ask(self, key: SocketKey, reason: Reason) -> None:
        """Have a socket leave. OSError: the table is full."""
        self.entries.put(key, Departure(step=DepartureStep.ASKED, reason=reason.number))

    def give_up(self, key: SocketKey) -> None:
        """Have what was begun undone by the next `step`; the entry is then gone."""
        found = self.entries.get(key)
        if found and found.step == DepartureStep.PARTED:
            self.entries.put(key, Departure(step=DepartureStep.RETURN, reason=found.reason))
        elif found and found.step != DepartureStep.RETURN:
            self.entries.delete(key)

    def step(self, namespace: Inside = contextlib.nullcontext) -> None:
        """Try the next step of every socket of a network namespace that is named.

        namespace: enters it. Where a socket has parted since the last time, it waits first until no program
        is still running that began before: all have seen it then.
        """
        parted = {key for key, found in self.entries.items() if found.step == DepartureStep.PARTED}
        if parted - self._settled:
            wait_for_programs()
        self._settled = parted
        with namespace():
            pinned = self._link.open("rb", buffering=0)  # the iterator's namespace is that of who opens it
        with pinned:
            while pinned.read(1) is None:  # it has looked at a million sockets, and goes on
                pass

    def close(self) -> None:
        """Give the descriptor back."""
        self.entries.close()


def wait_for_programs() -> None:
    """Return when every BPF program that was running at the call has ended (an RCU grace period)."""
    number = _MEMBARRIER[platform.machine()]
    if _libc.syscall(ctypes.c_long(number), _MEMBARRIER_GLOBAL, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"membarrier: {os.strerror(code)}")

"""Ends connections that a policy no longer allows, idle ones too.

The programs judge a connection again at its next packet once the policy's revision, or the peer's
identity, has moved. An idle connection has no next packet, so the agent provokes one from each that has
not been judged since.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Mapping

from datapath import libbpf
from datapath.codec import Record
from datapath.constants import ConntrackFlag
from datapath.maps import Maps
from datapath.maps.typed import BATCH
from datapath.nudge import nudge
from datapath.tables import ConntrackEntry, Endpoint, FlowKey

# A policy change comes as several moves; and most connections speak by themselves in this time.
SETTLE_SECONDS = 0.05
AGAIN_SECONDS = 0.25
TRIES = 3
TIDY_SECONDS = 60.0
_TCP = 6
_DONE = ConntrackFlag.REVOKED | ConntrackFlag.RESET
_CLOSED = ConntrackFlag.LOCAL_FIN | ConntrackFlag.PEER_FIN


def _place(record: type[Record], name: str) -> slice:
    """Where a field lies in the bytes of a record."""
    return next(slice(at, at + size) for field, at, size in record.layout().fields if field == name)


# Whole tables are gone through: only what is looked at is read out of the bytes.
_ENDPOINT = _place(FlowKey, "endpoint")
_EXPIRES = _place(ConntrackEntry, "expires")

Peers = Mapping[ipaddress.IPv4Address, int]


class Revoker:
    """A thread that follows up on moved policies and keeps connection tracking tidy."""

    def __init__(
        self, maps: Maps, endpoints: Callable[[], Mapping[int, Endpoint]], log: Callable[..., None]
    ) -> None:
        """`endpoints()` gives the entries of the local endpoints by their number."""
        self._maps = maps
        self._endpoints = endpoints
        self._log = log
        self._changed = threading.Condition()
        self._moved: set[int] = set()
        self._peers: dict[ipaddress.IPv4Address, int] = {}

    def moved(self, endpoints: set[int]) -> None:
        """The policies of these endpoints have moved. Returns at once."""
        with self._changed:
            self._moved |= endpoints
            self._changed.notify()

    def renamed(self, peers: Peers) -> None:
        """These addresses have another identity now (address -> identity). Returns at once."""
        with self._changed:
            self._peers.update(peers)
            self._changed.notify()

    def run(self, stop: threading.Event) -> None:
        tidied = time.monotonic()
        while not stop.is_set():
            with self._changed:
                if not self._moved and not self._peers:
                    self._changed.wait(max(0.0, tidied + TIDY_SECONDS - time.monotonic()))
            if stop.wait(SETTLE_SECONDS):
                return
            with self._changed:
                moved, self._moved = self._moved, set()
                peers, self._peers = self._peers, {}
            try:
                if moved or peers:
                    self._follow_up(moved, peers, stop)
                if time.monotonic() - tidied >= TIDY_SECONDS:
                    self.tidy()
                    tidied = time.monotonic()
            except OSError as fault:
                self._log("error", "connections not followed up", fault=str(fault))

    def _follow_up(self, moved: set[int], peers: Peers, stop: threading.Event) -> None:
        for _ in range(TRIES):
            stale = self.stale(moved, peers)
            if not stale:
                return
            endpoints = self._endpoints()
            nudge([(key, endpoints[key.endpoint]) for key in stale if key.endpoint in endpoints])
            if stop.wait(AGAIN_SECONDS):
                return

    def tidy(self) -> int:
        """Delete entries that have expired or whose endpoint is gone; returns how many.

        An endpoint's number comes back after 65,534 others at the earliest, so long after this.
        """
        now = time.monotonic_ns()
        found = [
            (raw, int.from_bytes(raw[_ENDPOINT], "little"), int.from_bytes(value[_EXPIRES], "little"))
            for raw, value in libbpf.map_items(self._maps.conntrack.fd, FlowKey.size(), ConntrackEntry.size())
        ]
        living = set(self._endpoints())
        dead = [raw for raw, endpoint, expires in found if expires < now or endpoint not in living]
        for start in range(0, len(dead), BATCH):
            libbpf.map_delete_many(self._maps.conntrack.fd, dead[start : start + BATCH])
        return len(dead)

    def stale(self, moved: set[int], peers: Peers) -> list[FlowKey]:
        """The TCP connections that have not been judged since the change."""
        revisions = {number: self._maps.policies.revision(number) for number in moved}
        return [key for key, entry in self._maps.conntrack.live() if _is_stale(key, entry, revisions, peers)]


def _is_stale(key: FlowKey, entry: ConntrackEntry, revisions: Mapping[int, int], peers: Peers) -> bool:
    if key.protocol != _TCP or entry.flags & _DONE or entry.flags & _CLOSED == _CLOSED:
        return False
    if key.endpoint in revisions and entry.revision != revisions[key.endpoint]:
        return True
    if entry.flags & ConntrackFlag.FROM_HOST:
        return False
    return key.peer in peers and entry.peer_identity != peers[key.peer]  # type: ignore[index]

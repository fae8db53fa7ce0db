"""Ends connections that a policy no longer allows, idle ones too.

The programs judge a connection again at its next packet once the policy's revision, or the peer's
identity, has moved. An idle connection has no next packet, so the agent provokes one from each that has
not been judged since.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Mapping

from datapath.constants import ConntrackFlag
from datapath.maps import Maps
from datapath.nudge import nudge
from datapath.tables import ConntrackEntry, Endpoint, FlowKey

# A policy change comes as several moves; and most connections speak by themselves in this time.
SETTLE_SECONDS = 0.05
AGAIN_SECONDS = 0.25
TRIES = 3
EXPIRE_SECONDS = 30.0
_TCP = 6
_DONE = ConntrackFlag.REVOKED | ConntrackFlag.RESET
_CLOSED = ConntrackFlag.LOCAL_FIN | ConntrackFlag.PEER_FIN

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
        while not stop.is_set():
            with self._changed:
                if not self._moved and not self._peers:
                    self._changed.wait(EXPIRE_SECONDS)
            if stop.wait(SETTLE_SECONDS):
                return
            with self._changed:
                moved, self._moved = self._moved, set()
                peers, self._peers = self._peers, {}
            try:
                if moved or peers:
                    self._follow_up(moved, peers, stop)
                else:
                    self._maps.conntrack.expire()
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

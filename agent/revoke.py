"""Ends connections that a policy no longer allows, idle ones too.

The programs judge a connection again at its next packet once the policy's revision has moved. An idle
connection has no next packet, so the agent sends each that has not been judged since one segment that
makes its end speak.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# A policy change comes as several moves; and most connections speak by themselves in this time.
SETTLE_SECONDS = 0.05
EXPIRE_SECONDS = 30.0


class Revoker:
    """A thread that follows up on moved policies and keeps connection tracking tidy."""

    def __init__(
        self, nudge: Callable[[set[int]], int], expire: Callable[[], int], log: Callable[..., None]
    ) -> None:
        """`nudge(endpoints)` makes stale connections speak, `expire()` frees dead entries; both count."""
        self._nudge = nudge
        self._expire = expire
        self._log = log
        self._changed = threading.Condition()
        self._moved: set[int] = set()

    def moved(self, endpoints: set[int]) -> None:
        """The policies of these endpoints have moved. Returns at once."""
        with self._changed:
            self._moved |= endpoints
            self._changed.notify()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._changed:
                if not self._moved:
                    self._changed.wait(EXPIRE_SECONDS)
            if stop.wait(SETTLE_SECONDS):
                return
            with self._changed:
                moved, self._moved = self._moved, set()
            try:
                if moved:
                    self._nudge(moved)
                else:
                    self._expire()
            except OSError as fault:
                self._log("error", "connections not followed up", fault=str(fault))

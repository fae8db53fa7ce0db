"""Addresses of sandboxes that are no more: what containerd no longer lists is taken down.

A sandbox appears in containerd's list only after its ADD has ended, so a young attachment is left alone;
and nothing is taken down on a list that could not be read.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from agent.ipam import Ipam

LIST_SECONDS = 20.0


def containerd_sandboxes() -> set[str]:
    """The ids of all containers, sandboxes among them, that containerd keeps for Kubernetes.

    Raises OSError or subprocess.SubprocessError when containerd does not say.
    """
    answer = subprocess.run(
        ["ctr", "--namespace", "k8s.io", "containers", "list", "--quiet"],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIST_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    return set(answer.stdout.split())


class Reclaimer:
    """Compares the address book with the runtime's list from time to time."""

    def __init__(
        self,
        ipam: Ipam,
        sandboxes: Callable[[], set[str]],
        forget: Callable[[str, str], bool],
        log: Callable[..., None],
        young_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`forget(container, interface)` takes an attachment down; one is young for `young_seconds`."""
        self._ipam = ipam
        self._sandboxes = sandboxes
        self._forget = forget
        self._log = log
        self._young = young_seconds
        self._clock = clock

    def run_once(self) -> int:
        """One comparison; returns how many attachments were taken down."""
        old = [a for a in self._ipam.all() if self._clock() - a.since > self._young]
        if not old:
            return 0
        try:
            listed = self._sandboxes()
        except (OSError, subprocess.SubprocessError) as fault:
            self._log("warning", "containerd does not list its sandboxes", fault=str(fault))
            return 0
        count = 0
        for attachment in old:
            if attachment.container not in listed and self._forget(*attachment.owner):
                count += 1
                self._log(
                    "info", "address reclaimed", address=attachment.address, container=attachment.container
                )
        return count

    def run(self, stop: threading.Event) -> None:
        """Compare, twice in the time for which an attachment is young, until `stop`."""
        while not stop.wait(self._young / 2):
            try:
                self.run_once()
            except Exception as fault:  # the next round tries again
                self._log("error", "reclaiming failed", fault=repr(fault), exc_info=True)

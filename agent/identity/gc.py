"""Identities that nobody has any more are deleted, in two steps that a new user of one can stop.

First the object is marked with the time since which it is unused; whoever wants to use a marked identity
takes the mark off, which makes it another version. Some time later (ten minutes, unless the agent is
configured otherwise) it is deleted in exactly the version that carries the mark, so a user who came in
between has won.
"""

from __future__ import annotations

import datetime
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

from agent.identity.allocator import PATH
from agent.planes.kubernetes.client import ApiError
from agent.planes.kubernetes.parse import UNUSED_MARK

LOOKS = 5  # times that an agent looks in the time for which an identity must have been unused
_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class Collector(Protocol):
    """The part of `Api` that the collector uses."""

    def get(self, path: str) -> dict[str, Any]: ...

    def merge(self, path: str, body: object) -> dict[str, Any]: ...

    def delete(self, path: str, body: object | None = None) -> dict[str, Any]: ...


class IdentityCollector:
    """Every agent runs one; they do each other no harm."""

    def __init__(
        self,
        api: Collector,
        unused: Callable[[], list[int]],
        log: Callable[..., None],
        wait_seconds: float,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """`unused()` tells the identities that no endpoint of the cluster has.

        One that was so for `wait_seconds` is deleted.
        """
        self._api = api
        self._unused = unused
        self._log = log
        self._wait = wait_seconds
        self._now = now

    def run_once(self) -> int:
        """Mark, or delete, what is unused; returns how many were deleted."""
        return sum(self._consider(number) for number in self._unused())

    def _consider(self, number: int) -> bool:
        path = f"{PATH}/{number}"
        try:
            there = self._api.get(path)
            metadata = there["metadata"]
            mark = (metadata.get("annotations") or {}).get(UNUSED_MARK)
            since = _time(mark)
            if since is None:
                stamp = self._now().strftime(_FORMAT)
                version = metadata["resourceVersion"]
                self._api.merge(
                    path, {"metadata": {"resourceVersion": version, "annotations": {UNUSED_MARK: stamp}}}
                )
                return False
            if (self._now() - since).total_seconds() < self._wait:
                return False
            precondition = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
            self._api.delete(
                path, {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": precondition}
            )
        except ApiError as fault:
            if fault.code not in (404, 409):
                raise
            return False
        self._log("info", "identity deleted", identity=number)
        return True

    def run(self, stop: threading.Event) -> None:
        """Look from time to time until `stop`."""
        while not stop.wait(self._wait / LOOKS * random.uniform(0.5, 1.5)):  # noqa: S311
            try:
                self.run_once()
            except ApiError as fault:
                self._log("warning", "identities not collected", fault=str(fault))


def _time(text: str | None) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text or "", _FORMAT).replace(tzinfo=datetime.UTC)
    except ValueError:
        return None

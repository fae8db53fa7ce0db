"""One resource kept in step with the API server by list and watch.

It survives what an API server does to its clients: a history that is gone (410, as a status or as an
event), a watch that ends or breaks, pages that expire, an API server that is away for minutes. Through
all of it the last known values stand: nothing is reported as deleted before a complete list says so.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.planes.base import Change, Event, Kind, Sink, Synced
from agent.planes.kubernetes.client import ApiError

PAGE = 500
FIRST_WAIT = 0.2
LONGEST_WAIT = 10.0
WATCH_SECONDS = (240, 480)
# Bookmarks come about once a minute; a server that says nothing for this long is taken for dead.
IDLE_SECONDS = 150.0

Parse = Callable[[dict[str, Any]], object | None]


class Reader(Protocol):
    """The part of `Api` that a reflector uses."""

    def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]: ...

    def watch(self, path: str, query: dict[str, str], idle_seconds: float) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Resource:
    """What to list and watch: `path` of the collection, selectors, and how to read one object.

    `parse` gives None for an object that is of no concern; it then counts as absent.
    """

    kind: Kind
    path: str
    parse: Parse
    query: dict[str, str] = field(default_factory=dict)


class _GoneError(Exception):
    """The history that the watch wanted is no longer kept: list again."""


class Backoff:
    """Waits that double up to a limit, each a random part of its span, so that nodes spread out."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311
        self._span = FIRST_WAIT

    def next(self) -> float:
        """Seconds to wait now."""
        span, self._span = self._span, min(self._span * 2, LONGEST_WAIT)
        return span * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._span = FIRST_WAIT


class Reflector:
    """Lists and watches one resource and reports what changed."""

    def __init__(
        self,
        api: Reader,
        resource: Resource,
        sink: Sink,
        note: Callable[[str, str], None],
        rng: random.Random | None = None,
    ) -> None:
        """`note(what, text)` hears of faults and their end: "fault", "recovered", "gone", "unreadable"."""
        self._api = api
        self._resource = resource
        self._sink = sink
        self._note = note
        self._rng = rng or random.Random()  # noqa: S311
        self._backoff = Backoff(self._rng)
        self._values: dict[str, object] = {}
        self._version = ""
        self._failing = False
        self._synced = False

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            try:
                if not self._version:
                    self._list()
                self._watch(stop)
            except _GoneError:
                self._version = ""
                self._note("gone", "")
                stop.wait(self._rng.uniform(0.0, 0.5))
            except ApiError as fault:
                if fault.code in (400, 410):  # 400: a version that this (restored) server never had
                    self._version = ""
                if not self._failing:
                    self._failing = True
                    self._note("fault", str(fault))
                stop.wait(self._backoff.next())

    def _healthy(self) -> None:
        self._backoff.reset()
        if self._failing:
            self._failing = False
            self._note("recovered", "")

    def _list(self) -> None:
        found: dict[str, object] = {}
        query = {**self._resource.query, "limit": str(PAGE)}
        while True:
            page = self._api.get(self._resource.path, query)
            for item in page.get("items") or []:
                self._read(item, found)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        events: list[Event] = [
            Change(self._resource.kind, key, None) for key in self._values if key not in found
        ]
        events.extend(
            Change(self._resource.kind, key, value)
            for key, value in found.items()
            if self._values.get(key) != value
        )
        self._values = found
        self._version = str(metadata.get("resourceVersion") or "")
        if not self._synced:
            self._synced = True
            events.append(Synced(self._resource.kind))
        if events:
            self._sink(events)

    def _watch(self, stop: threading.Event) -> None:
        query = {
            **self._resource.query,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._rng.randint(*WATCH_SECONDS)),
        }
        for event in self._api.watch(self._resource.path, query, IDLE_SECONDS):
            if stop.is_set():
                return
            self._healthy()
            item = event.get("object") or {}
            if event.get("type") == "ERROR":
                if item.get("code") == 410:
                    raise _GoneError
                raise ApiError(int(item.get("code") or 0), str(item.get("reason")), str(item.get("message")))
            version = (item.get("metadata") or {}).get("resourceVersion")
            if event.get("type") != "BOOKMARK":
                self._apply(str(event.get("type")), item)
            if version:
                self._version = version

    def _apply(self, what: str, item: dict[str, Any]) -> None:
        found: dict[str, object] = {}
        key = key_of(item)
        if what != "DELETED":
            self._read(item, found)
        value = found.get(key)
        if value is None:
            if self._values.pop(key, None) is not None:
                self._sink([Change(self._resource.kind, key, None)])
        elif self._values.get(key) != value:
            self._values[key] = value
            self._sink([Change(self._resource.kind, key, value)])

    def _read(self, item: dict[str, Any], into: dict[str, object]) -> None:
        """Parse `item` into `into`; one that cannot be read keeps its last readable value."""
        key = key_of(item)
        try:
            value = self._resource.parse(item)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            self._note("unreadable", f"{self._resource.kind} {key}: {type(fault).__name__}: {fault}")
            value = self._values.get(key)
        if value is not None:
            into[key] = value


def key_of(item: dict[str, Any]) -> str:
    """The key of a change: "namespace/name", or "name" for a cluster-wide object."""
    metadata = item.get("metadata") or {}
    namespace = metadata.get("namespace")
    name = str(metadata.get("name"))
    return f"{namespace}/{name}" if namespace else name

"""Numbers for sets of labels, agreed on by all nodes through CiliumIdentity objects.

The number that a set of labels gets is tried in an order that follows from the labels alone, so that two
nodes that meet the same labels at the same time try the same number first: one creates the object, the
other finds it there with the labels that it wanted. Nothing needs a lock or a leader.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from agent.identity.reserved import FIRST_POD_IDENTITY, LAST_POD_IDENTITY
from agent.model.objects import Identity, Labels
from agent.planes.kubernetes.client import ApiError
from agent.planes.kubernetes.parse import UNUSED_MARK

PATH = "/apis/cilium.io/v2/ciliumidentities"
API_VERSION = "cilium.io/v2"
TRIES = 64

LabelKey = frozenset[tuple[str, str]]


class NoIdentityError(Exception):
    """No number could be had: the API server is away, or every number that was tried is taken."""


class IdentityWriter(Protocol):
    """The part of `Api` that the allocator uses."""

    def get(self, path: str) -> dict[str, Any]: ...

    def create(self, path: str, body: object) -> dict[str, Any]: ...

    def merge(self, path: str, body: object) -> dict[str, Any]: ...


def label_key(labels: Labels) -> LabelKey:
    return frozenset(labels.items())


def numbers(labels: Labels) -> Iterator[int]:
    """The numbers to try for `labels`, best first; the same on every node."""
    text = "\0".join(f"{key}\1{value}" for key, value in sorted(labels.items()))
    span = LAST_POD_IDENTITY - FIRST_POD_IDENTITY + 1
    for attempt in range(TRIES):
        digest = hashlib.sha256(f"{attempt}\2{text}".encode()).digest()
        yield FIRST_POD_IDENTITY + int.from_bytes(digest[:8]) % span


def document(number: int, labels: Labels) -> dict[str, Any]:
    """The CiliumIdentity object."""
    return {
        "apiVersion": API_VERSION,
        "kind": "CiliumIdentity",
        "metadata": {"name": str(number)},
        "security-labels": dict(labels),
    }


class IdentityAllocator:
    """Finds or makes the identity of a set of labels. Safe to use from many threads."""

    def __init__(self, api: IdentityWriter) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._by_number: dict[int, Identity] = {}
        self._by_labels: dict[LabelKey, set[int]] = {}

    def observe(self, key: str, identity: Identity | None) -> None:
        """Hear of a CiliumIdentity from the watch (`key` is its name)."""
        with self._lock:
            before = self._by_number.pop(int(key), None) if key.isdecimal() else None
            if before is not None:
                held = self._by_labels[label_key(before.labels)]
                held.discard(before.number)
                if not held:
                    del self._by_labels[label_key(before.labels)]
            if identity is not None:
                self._by_number[identity.number] = identity
                self._by_labels.setdefault(label_key(identity.labels), set()).add(identity.number)

    def known(self, labels: Labels) -> Identity | None:
        """The identity of `labels` if one is known; the lowest number where there are two."""
        with self._lock:
            held = self._by_labels.get(label_key(labels))
            return self._by_number[min(held)] if held else None

    def allocate(self, labels: Labels) -> Identity:
        """The identity of `labels`, made if it is not there. Raises NoIdentityError."""
        found = self.known(labels)
        if found and not found.marked:
            return found
        if found:
            self._unmark(found.number)
        for number in numbers(labels):
            try:
                identity = self._claim(number, labels)
            except ApiError as fault:
                raise NoIdentityError(f"identity {number}: {fault}") from fault
            if identity:
                return identity
        raise NoIdentityError(f"{TRIES} numbers in a row are taken by other labels")

    def _unmark(self, number: int) -> None:
        """Stop the identity from being deleted; where it is deleted already, it will be made again."""
        try:
            self._api.merge(f"{PATH}/{number}", {"metadata": {"annotations": {UNUSED_MARK: None}}})
        except ApiError as fault:
            if fault.code != 404:
                raise NoIdentityError(f"identity {number}: {fault}") from fault

    def _claim(self, number: int, labels: Labels) -> Identity | None:
        """Make the object, or find that it is there for these labels; None if others hold the number."""
        path = f"{PATH}/{number}"
        for _ in range(3):  # made and collected by others in between
            try:
                self._api.create(PATH, document(number, labels))
                return Identity(number, dict(labels))
            except ApiError as fault:
                if fault.code != 409:
                    raise
            try:
                there = self._api.get(path)
            except ApiError as fault:
                if fault.code == 404:
                    continue
                raise
            if dict(there.get("security-labels") or {}) == dict(labels):
                if UNUSED_MARK in (there["metadata"].get("annotations") or {}):
                    self._unmark(number)
                    continue  # was it still there?
                return Identity(number, dict(labels))
            return None
        return None

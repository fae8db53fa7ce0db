"""Addresses of the node's pod range: who holds which, kept on disk.

An attachment (container and interface) holds at most one address, and an address has at most one
holder; both are true of the file at every moment, since it is replaced whole. Released addresses are
given out again as late as the range allows, so that what the cluster still believes of the last holder
has time to go.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.files import write_durable

LAYOUT = 1
# 65535 is the self-test's of socket redirect.
LAST_ENDPOINT = 65534


class RangeFullError(Exception):
    """Every address of the node's pod range is held."""


class StateError(Exception):
    """The state file cannot be read. Giving out addresses without it could give one twice."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one sandbox, and what it was given.

    `endpoint` is its number on this node (1 to 65534), `since` the wall-clock time of the ADD in seconds.
    `ready` is set when ADD has come to its end; one that is not ready has no promise to anybody.
    """

    container: str
    interface: str
    address: str
    namespace: str
    pod: str
    pod_uid: str
    netns: str
    host_interface: str
    mac: str
    since: float
    endpoint: int = 0
    ready: bool = False

    @property
    def owner(self) -> tuple[str, str]:
        return (self.container, self.interface)


class Ipam:
    """The address book of this node. Safe to use from many threads; every change is on disk on return."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Read the state at `path`; a missing file is an empty book. Raises StateError."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Attachment] = {}
        self._by_address: dict[str, tuple[str, str]] = {}
        self._ranges: tuple[ipaddress.IPv4Network, ...] = ()
        self._cursor = 0
        self._last_endpoint = 0
        self._load()

    def _load(self) -> None:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            if data["layout"] != LAYOUT:
                raise ValueError(f"layout {data['layout']}")
            for entry in data["attachments"]:
                attachment = Attachment(**entry)
                if attachment.address in self._by_address:
                    raise ValueError(f"{attachment.address} is held twice")
                self._held[attachment.owner] = attachment
                self._by_address[attachment.address] = attachment.owner
            self._cursor = int(data["cursor"])
            self._last_endpoint = int(data["last_endpoint"])
            self._ranges = tuple(ipaddress.IPv4Network(text) for text in data["ranges"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as fault:
            raise StateError(f"{self._path}: {fault}") from fault

    def _save(self) -> None:
        write_durable(
            self._path,
            {
                "layout": LAYOUT,
                "ranges": [str(network) for network in self._ranges],
                "cursor": self._cursor,
                "last_endpoint": self._last_endpoint,
                "attachments": [dataclasses.asdict(a) for a in self._held.values()],
            },
        )

    def set_ranges(self, ranges: Iterable[str]) -> None:
        """The node's IPv4 pod ranges. Holders of addresses outside them keep theirs until they go."""
        networks = tuple(
            network
            for text in ranges
            if isinstance(network := ipaddress.ip_network(text), ipaddress.IPv4Network)
        )
        with self._lock:
            if networks != self._ranges:
                self._ranges, self._cursor = networks, 0
                self._save()

    @property
    def ranges(self) -> tuple[ipaddress.IPv4Network, ...]:
        return self._ranges

    def allocate(self, template: Attachment) -> Attachment:
        """Give the attachment an address and an endpoint number, and record it, not ready.

        `template` holds all else.
        One that already holds an address keeps both. Raises RangeFullError.
        """
        with self._lock:
            held = self._held.get(template.owner)
            address = held.address if held else self._next_free()
            attachment = dataclasses.replace(
                template,
                address=address,
                endpoint=held.endpoint if held else self._next_endpoint(),
                since=self._clock(),
                ready=False,
            )
            self._put(attachment)
            return attachment

    def finish(self, attachment: Attachment) -> Attachment:
        """Mark the attachment as ready. KeyError if it was released in between."""
        with self._lock:
            if self._held.get(attachment.owner) != attachment:
                raise KeyError(attachment.owner)
            ready = dataclasses.replace(attachment, ready=True)
            self._put(ready)
            return ready

    def release(self, container: str, interface: str) -> Attachment | None:
        """Take back what the attachment holds; None if it holds nothing (any more)."""
        with self._lock:
            attachment = self._held.pop((container, interface), None)
            if attachment is None:
                return None
            del self._by_address[attachment.address]
            try:
                self._save()
            except BaseException:
                self._held[attachment.owner] = attachment
                self._by_address[attachment.address] = attachment.owner
                raise
            return attachment

    def get(self, container: str, interface: str) -> Attachment | None:
        with self._lock:
            return self._held.get((container, interface))

    def all(self) -> list[Attachment]:
        with self._lock:
            return list(self._held.values())

    @property
    def capacity(self) -> int:
        """How many addresses the ranges hold."""
        return sum(_usable(network) for network in self._ranges)

    def _put(self, attachment: Attachment) -> None:
        before = self._held.get(attachment.owner)
        self._held[attachment.owner] = attachment
        self._by_address[attachment.address] = attachment.owner
        try:
            self._save()
        except BaseException:
            if before:
                self._held[attachment.owner] = before
            else:
                del self._held[attachment.owner]
                del self._by_address[attachment.address]
            raise

    def _next_free(self) -> str:
        capacity = self.capacity
        for step in range(capacity):
            position = (self._cursor + step) % capacity
            address = self._at(position)
            if address not in self._by_address:
                self._cursor = (position + 1) % capacity
                return address
        raise RangeFullError(
            f"all {capacity} addresses of {', '.join(map(str, self._ranges)) or 'no range'} are held"
        )

    def _next_endpoint(self) -> int:
        """The number that was given longest ago, or never: connection tracking still knows the others."""
        taken = {attachment.endpoint for attachment in self._held.values()}
        number = self._last_endpoint % LAST_ENDPOINT + 1
        while number in taken:
            number = number % LAST_ENDPOINT + 1
        self._last_endpoint = number
        return number

    def _at(self, position: int) -> str:
        for network in self._ranges:
            if position < _usable(network):
                return str(network[position + 2])
            position -= _usable(network)
        raise IndexError(position)


def router_address(network: ipaddress.IPv4Network) -> str:
    """The first host address of a range: the node's own, never given to a pod."""
    return str(network[1])


def _usable(network: ipaddress.IPv4Network) -> int:
    """Addresses for pods: not the network's, not the node's own, not the broadcast address."""
    return max(network.num_addresses - 3, 0)

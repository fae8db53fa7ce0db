"""Flow events out of the kernel's ring, put into words for whoever watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from agent.model.objects import Protocol
from agent.node.server import Flows
from datapath import reasons
from datapath.constants import Direction, Place
from datapath.libbpf import RingReader
from datapath.tables import FlowEvent

# How long a watcher may wait for an event that did not fill the kernel's wake-up mark.
WATCHED_SECONDS = 0.1
IDLE_SECONDS = 2.0

# Between these two events a connection's bytes go from socket to socket; the last one holds the totals.
_ACCELERATED = {reasons.by_label()[label].number for label in ("ACCELERATED", "ACCELERATED_CLOSED")}
_PROTOCOLS = {p.number: str(p) for p in Protocol if p.number}


class FlowReader:
    """Empties the ring; with no watcher the events are thrown away unread, a batch every two seconds."""

    def __init__(
        self,
        descriptor: int,
        flows: Flows,
        endpoint_name: Callable[[int], str],
        rule_name: Callable[[int], str],
    ) -> None:
        """`endpoint_name` and `rule_name` put numbers into words; called for watched events alone."""
        self._flows = flows
        self._endpoint_name = endpoint_name
        self._rule_name = rule_name
        self._ring = RingReader(descriptor, self._take)
        #: Events of another size: of programs of another release, and not to be read by this one's layout.
        self.foreign = 0
        # Event times are of the monotonic clock.
        self._offset = time.time() - time.monotonic()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if self._flows.watched:
                self._ring.poll(WATCHED_SECONDS)
            else:
                stop.wait(IDLE_SECONDS)
                self._ring.consume()

    def _take(self, raw: bytes) -> None:
        if len(raw) != FlowEvent.size():
            self.foreign += 1
        elif self._flows.watched:
            self._flows.publish(self.describe(FlowEvent.unpack(raw)))

    def describe(self, event: FlowEvent) -> dict[str, Any]:
        """The event in words. `time` is wall-clock seconds."""
        protocol = _PROTOCOLS.get(event.protocol, str(event.protocol))
        reason = reasons.by_number().get(event.reason)
        return {
            "time": round(event.time / 1e9 + self._offset, 6),
            "reason": reason.name if reason else reasons.name_of(event.reason),
            "dropped": reason.drop if reason else True,
            "endpoint": self._endpoint_name(event.endpoint) if event.endpoint else "",
            "local": f"{event.local}:{event.local_port}",
            "peer": f"{event.peer}:{event.peer_port}",
            "peer_identity": event.peer_identity,
            "direction": Direction(event.direction).name.lower(),
            "protocol": protocol,
            "place": Place(event.place).name.lower().replace("_", "-"),
            "rule": self._rule_name(event.rule) if event.rule else "",
            "length": event.length,
            "accelerated": event.reason in _ACCELERATED,
            "messages": event.messages,
            "bytes": event.bytes,
            "latency_microseconds": round(event.latency / 1000, 1) if event.latency else None,
        }

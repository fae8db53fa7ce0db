"""Expecting reasons: each test says which reason it means to hit, and the suite knows which were."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from datapath import libbpf, tables
from datapath.constants import Place
from tests.bpf.sandbox import Node

hit: set[str] = set()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


@contextlib.contextmanager
def counted(node: Node, label: str, place: Place, times: int = 1, *, exactly: bool = True) -> Iterator[None]:
    """What happens inside is counted under this reason, so many times."""
    before = node.maps.metrics.get(label, place)
    yield
    if not exactly:
        wait_for(
            lambda: node.maps.metrics.get(label, place) >= before + times,
            f"{label} at {place.name} counted {times} times",
        )
    else:
        assert node.maps.metrics.get(label, place) - before == times, f"{label} at {place.name}"
    if times:
        hit.add(label)


@contextlib.contextmanager
def events(node: Node) -> Iterator[list[tables.FlowEvent]]:
    """The flow events that a node reports meanwhile; complete when the block ends."""
    found: list[tables.FlowEvent] = []
    reader = libbpf.RingReader(node.maps.events_fd, lambda raw: found.append(tables.FlowEvent.unpack(raw)))
    reader.consume()
    found.clear()
    try:
        yield found
        reader.consume()
    finally:
        reader.close()

"""Socket redirect's own ways of attaching and going away.

A socket keeps the programs that it met when it was enrolled, and the tracepoint must count each byte once. So
what they run is a stub that never changes, and behind it stands a program array, whose entry an upgrade
swaps in one step.

Going away, nothing is taken from a socket: enrolment stops (the cgroup's programs are off already), senders
go to TCP (the array is emptied), and the map of the sockets, kept alive by the stub that they hold, ends with
the last of them. So no reader loses a byte that was sent to it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datapath import attach, libbpf, tracing
from datapath.constants import REDIRECT_SLOT
from datapath.maps.departures import LEAVE_LINK
from datapath.maps.redirect import Redirect
from datapath.programs import Target, pin_of, programs_for

_SLOT = REDIRECT_SLOT.to_bytes(4, "little")
TRACE_LINK = "receive"
STATES_LINK = "states"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = libbpf.open_pinned(path)
    try:
        yield fd
    finally:
        os.close(fd)


def attach_all(pins: Path, maps: Mapping[str, int], *, fresh: bool) -> None:
    """Put everything but the cgroup's programs in place. maps: descriptors by name. fresh: these maps are
    new, and what is still attached belongs to others.
    """
    for target, name in ((Target.SENDER, "senders"), (Target.READER, "readers")):
        for program in programs_for(target):
            with _opened(pin_of(pins, program.name)) as fd:
                libbpf.map_update(maps[name], _SLOT, fd.to_bytes(4, "little"))
    for program in programs_for(Target.SOCKETS):
        assert program.attach is not None
        if attach.attached(maps["sockets"], program.attach, program.name) is None:
            with _opened(pin_of(pins, program.name)) as fd:
                tracing.bind_map(fd, maps["sockets"])
                libbpf.program_attach(fd, maps["sockets"], program.attach)
    trace, states = pins / "links" / TRACE_LINK, pins / "links" / STATES_LINK
    for program in programs_for(Target.TRACE):
        if fresh or not trace.exists():
            with _opened(pin_of(pins, program.name)) as fd:
                trace.unlink(missing_ok=True)
                link = tracing.attach_trace(fd)
                tracing.pin_over(link, trace)
                os.close(link)
    for target, over, pin in (
        (Target.ITERATOR, maps["states"], states),
        (Target.LEAVING, None, pins / "links" / LEAVE_LINK),
    ):
        for program in programs_for(target):
            with _opened(pin_of(pins, program.name)) as fd:
                link = tracing.attach_iterator(fd, over)
                tracing.pin_over(link, pin)
                os.close(link)


def detach_all(pins: Path) -> list[dict[str, Any]]:
    """Move every sender to TCP and let go of the sockets; returns the connections that were accelerated.

    The pins themselves are the caller's to remove.
    """
    maps = pins / "maps"
    if not (maps / "sockets").exists():
        return []
    ending = accelerated(pins)
    with _opened(maps / "senders") as fd:
        libbpf.map_delete(fd, _SLOT)
    with _opened(maps / "sockets") as fd:
        attach.detach_all(Target.SOCKETS, fd)
    return ending


def accelerated(pins: Path) -> list[dict[str, Any]]:
    """The connections that are accelerated now."""
    redirect = Redirect.open(pins)
    try:
        return [
            {
                "client": f"{found.client}:{found.client_port}",
                "server": f"{found.server}:{found.server_port}",
                "unread": found.from_client.unread + found.from_server.unread,
            }
            for found in redirect.connections()
            if found.accelerated
        ]
    finally:
        redirect.close()


def status(pins: Path) -> dict[str, Any]:
    """Whether everything is in place, and how many connections are accelerated."""
    maps = pins / "maps"
    if not (maps / "sockets").exists():
        return {"attached": False, "connections": 0}
    with _opened(maps / "sockets") as sockets, _opened(maps / "senders") as senders:
        whole = all(
            program.attach is not None and attach.attached(sockets, program.attach, program.name) is not None
            for program in programs_for(Target.SOCKETS)
        )
        whole = whole and libbpf.map_lookup(senders, _SLOT, 4) is not None
    whole = whole and all((pins / "links" / name).exists() for name in (TRACE_LINK, LEAVE_LINK))
    return {"attached": whole, "connections": len(accelerated(pins))}

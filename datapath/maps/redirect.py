"""Accelerated connections, and why others are not: the sockets' storage joined with their streams."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datapath import libbpf, reasons
from datapath.codec import Address
from datapath.constants import PARTED_REASON_SHIFT, Meeting, Side, Stage
from datapath.maps.typed import TypedMap
from datapath.redirect_tables import SocketKey, SocketState, Stream

STATES_LINK = "states"


@dataclass(frozen=True, slots=True)
class Direction:
    """What one end has sent. Bytes and messages by way; unread: sent and not yet read; latency from send to
    read in nanoseconds, of samples of the redirected messages. reason: why the last message went by TCP, None
    when it was redirected.
    """

    messages: int = 0
    bytes: int = 0
    tcp_messages: int = 0
    tcp_bytes: int = 0
    unread: int = 0
    latency_samples: int = 0
    latency_total: int = 0
    latency_most: int = 0
    reason: reasons.Reason | None = None


@dataclass(frozen=True, slots=True)
class RedirectConnection:
    """One connection of which this node has at least one end in a pod, since the datapath was loaded.

    Addresses and ports as the client sees them (a server's end that was not paired: as it sees them). An
    endpoint id is 0 for an end that is no pod of this node. sides: the ends whose sockets are alive.
    accelerated: both ends are enrolled. reason: why not, None when accelerated. opened: CLOCK_MONOTONIC,
    nanoseconds. cookie, generation: of the keys of its streams. A connection of a pod that is not listed at
    all is older than the datapath (`before-agent`).
    """

    client: Address
    client_port: int
    server: Address
    server_port: int
    client_endpoint: int
    server_endpoint: int
    sides: tuple[Side, ...]
    accelerated: bool
    reason: reasons.Reason | None
    opened: int
    cookie: int = 0
    generation: int = 0
    from_client: Direction = field(default_factory=Direction)
    from_server: Direction = field(default_factory=Direction)


class Redirect:
    """Reads the maps of socket redirect."""

    def __init__(self, states: Path, streams: TypedMap[SocketKey, Stream]) -> None:
        self._states = states
        self.streams = streams

    @classmethod
    def open(cls, pins: Path) -> "Redirect":
        """FileNotFoundError: the loader has not been run."""
        streams = TypedMap(libbpf.open_pinned(pins / "maps" / "streams"), SocketKey, Stream)
        return cls(pins / "links" / STATES_LINK, streams)

    def sockets(self) -> list[SocketState]:
        """The storage of every socket that the programs have looked at, listeners too."""
        size = SocketState.size()
        with self._states.open("rb", buffering=0) as pinned:
            raw = b"".join(iter(lambda: pinned.read(1 << 16), b""))
        return [SocketState.unpack(raw[at : at + size]) for at in range(0, len(raw), size)]

    def connections(self) -> list[RedirectConnection]:
        """All connections: the two ends of a paired one together, others by their one end."""
        streams = self.streams.read()
        paired: dict[object, list[SocketState]] = {}
        for state in self.sockets():
            if state.stage in (Stage.ENROLLED, Stage.PLAIN, Stage.LEFT):
                paired.setdefault(_name(state), []).append(state)
        return [_connection({state.side: state for state in ends}, streams) for ends in paired.values()]

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.streams.fd)


def _name(state: SocketState) -> object:
    """What both ends of a connection have in common. Plain ends know each other by their addresses alone,
    which is exact between pods (loopback is the same in each).
    """
    if state.stage in (Stage.ENROLLED, Stage.LEFT) or state.cookie != state.own_cookie:
        return state.cookie, state.generation
    if not (state.client_endpoint and state.server_endpoint) or state.client.is_loopback:
        return state.own_cookie
    return state.client, state.client_port, state.server, state.server_port


def _connection(ends: dict[int, SocketState], streams: dict[SocketKey, Stream]) -> RedirectConnection:
    state = ends.get(Side.CLIENT) or ends[Side.SERVER]
    from_client, from_server = (
        streams.get(SocketKey(cookie=state.cookie, generation=state.generation, side=side)) for side in Side
    )
    accelerated = bool(from_client and from_server and from_client.meeting == Meeting.MET)
    refused = _refusal(ends.values())
    parted = next((stream.meeting for stream in (from_client, from_server) if stream and _parted(stream)), 0)
    if not accelerated and not refused:
        refused = parted >> PARTED_REASON_SHIFT or (from_client.reason if from_client else 0)
    return RedirectConnection(
        client=state.client,
        client_port=state.client_port,
        server=state.server,
        server_port=state.server_port,
        client_endpoint=state.client_endpoint,
        server_endpoint=state.server_endpoint,
        sides=tuple(Side(side) for side in sorted(ends)),
        accelerated=accelerated,
        reason=None if accelerated else reasons.by_number().get(refused),
        opened=state.opened,
        cookie=state.cookie,
        generation=state.generation,
        from_client=_direction(from_client),
        from_server=_direction(from_server),
    )


def _parted(stream: Stream) -> bool:
    return stream.meeting & ((1 << PARTED_REASON_SHIFT) - 1) == Meeting.PARTED


def _refusal(ends: Iterable[SocketState]) -> int:
    """The end that refused knows why; the other one alone that nothing came of it (`no-nonce`)."""
    vague = reasons.by_label()["NO_NONCE"].number
    found = [end.reason for end in ends if end.reason]
    return next((reason for reason in found if reason != vague), found[0] if found else 0)


def _direction(stream: Stream | None) -> Direction:
    if stream is None:
        return Direction()
    # A sender that has left is not counted any more; what its reader has read beyond came by TCP.
    tcp_bytes = max(stream.tcp_bytes, stream.received - stream.redirected)
    return Direction(
        messages=stream.messages,
        bytes=stream.redirected,
        tcp_messages=stream.tcp_messages,
        tcp_bytes=tcp_bytes,
        unread=max(0, stream.redirected + stream.tcp_bytes - stream.received),
        latency_samples=stream.latency_samples,
        latency_total=stream.latency_total,
        latency_most=stream.latency_most,
        reason=reasons.by_number().get(stream.reason),
    )

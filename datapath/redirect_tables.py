# ruff: noqa: RUF009
"""Keys and values of the maps of socket redirect; the rest of them is in `datapath.tables`.

A connection is named by the cookie of its client's socket and a generation (a socket may be disconnected and
connected again); `side` chooses an end. Addresses and ports are those that the client sees: what tc judged
at its veth, whatever NAT made of them behind it.
"""

from dataclasses import dataclass

from datapath.codec import Address, Record, addr, be16, pad, u8, u16, u32, u64


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketKey(Record):
    """Key of `sockets`, and of `streams`: there the side of who sends."""

    C_NAME = "socket_key"
    cookie: int = u64()
    generation: int = u32()
    side: int = u32()


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketCookie(Record):
    """Value of `sockets` as a reader sees it: the socket's own cookie."""

    C_NAME = "socket_cookie"
    cookie: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonce(Record):
    """Key of `offers`: the random number in a SYN."""

    C_NAME = "nonce"
    nonce: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Record):
    """Value of `offers`: a client whose SYN is on its way.

    space: cookie of its network namespace. server_endpoint: 0 when the destination is no pod's address.
    seen: a listener of this node has read the nonce. enrolled: the client is in `sockets`. reason: why
    one of the two refuses.
    """

    C_NAME = "offer"
    cookie: int = u64()
    space: int = u64()
    client: Address = addr()
    server: Address = addr()
    client_port: int = be16()
    server_port: int = be16()
    generation: int = u32()
    client_endpoint: int = u16()
    server_endpoint: int = u16()
    seen: int = u8()
    enrolled: int = u8()
    reason: int = u8()
    _pad: bytes = pad(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketState(Record):
    """Value of `states`, the storage of one socket.

    cookie, generation, side: its key. own_cookie: of the socket itself. space: cookie of its network
    namespace. opened: nanoseconds of CLOCK_MONOTONIC. sequence: of TCP's first byte. An endpoint is 0 where
    it is no pod of this node. stage, flags: `datapath.constants`; reason: why plain, 0 when enrolled.
    same_cpu, other_cpu: samples of messages that this socket has read on their sender's CPU and on another
    one; both are halved when one is full. A server's socket that was not paired holds the addresses as it
    sees them itself.
    """

    C_NAME = "socket_state"
    cookie: int = u64()
    own_cookie: int = u64()
    nonce: int = u64()
    opened: int = u64()
    space: int = u64()
    client: Address = addr()
    server: Address = addr()
    client_port: int = be16()
    server_port: int = be16()
    generation: int = u32()
    sequence: int = u32()
    client_endpoint: int = u16()
    server_endpoint: int = u16()
    side: int = u8()
    stage: int = u8()
    reason: int = u8()
    flags: int = u8()
    same_cpu: int = u16(0)
    other_cpu: int = u16(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Record):
    """Value of `streams`: one direction of an accelerated connection.

    messages, redirected: how many, and their bytes, from socket to socket. tcp_messages, tcp_bytes: left to
    TCP. received: bytes that the reader has read; what was sent less this is unread. mark: position in the
    stream behind the last byte left to TCP. latency_*: from send to read, nanoseconds, of samples. reason:
    why the last message was left to TCP, 0 when it was redirected. meeting: `Meeting`, and above it the
    reason for parting. Revisions: those of both endpoints at the last verdict. refused: reason why the
    reader wants none of it redirected any more. cpu: where the message of `stamp` was sent, its low byte.
    """

    C_NAME = "stream"
    opened: int = u64()
    refreshed: int = u64()
    client_revision: int = u64()
    server_revision: int = u64()
    messages: int = u64()
    redirected: int = u64()
    tcp_messages: int = u64()
    tcp_bytes: int = u64()
    received: int = u64()
    mark: int = u64()
    stamp: int = u64()
    stamp_position: int = u64()
    latency_samples: int = u64()
    latency_total: int = u64()
    latency_most: int = u64()
    meeting: int = u64()
    client: Address = addr()
    server: Address = addr()
    client_port: int = be16()
    server_port: int = be16()
    sequence: int = u32()
    client_endpoint: int = u16()
    server_endpoint: int = u16()
    side: int = u8()
    reason: int = u8()
    refused: int = u8(0)
    cpu: int = u8(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure(Record):
    """Value of `departures`: an enrolled socket that is to be plain TCP again. The numbers are of
    `datapath.constants`; reason: why, one of `datapath.reasons`.
    """

    C_NAME = "departure"
    step: int = u8()
    reason: int = u8()
    obstacle: int = u8(0)
    _pad: bytes = pad(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortKey(Record):
    """Key of `plain_ports`: a server's port that is never accelerated."""

    C_NAME = "port_key"
    port: int = be16()


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRule(Record):
    """Value of `plain_ports`."""

    C_NAME = "port_rule"
    flags: int = u8(0)

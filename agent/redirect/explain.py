"""Is this connection accelerated, and if not, why: what the datapath knows, put into words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datapath import reasons
from datapath.constants import ConntrackFlag, Direction, NamespaceFlag, Side
from datapath.maps.redirect import Direction as Sent
from datapath.maps.redirect import RedirectConnection
from datapath.redirect_tables import SocketKey
from datapath.tables import ConntrackEntry, FlowKey

_TCP = 6
_NOT_OPEN = ConntrackFlag.LOCAL_FIN | ConntrackFlag.PEER_FIN | ConntrackFlag.RESET | ConntrackFlag.REVOKED
# Reasons in the order in which a new connection would meet them.
_OFF, _OPTED_OUT, _NOT_LOCAL = "redirect-off", "opted-out", "peer-not-local"
_BEFORE = "before-agent"


@dataclass(frozen=True, slots=True)
class Switches:
    """What the node's configuration says: on or off, and the servers' ports that stay with TCP."""

    enabled: bool
    plain_ports: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class End:
    """A pod or an address. `endpoint` and `flags` are 0 for what is no pod of this node."""

    name: str
    address: str
    endpoint: int = 0
    flags: NamespaceFlag = NamespaceFlag.NONE


def meaning(name: str) -> str:
    """The sentence of a reason, without its `plain TCP:`; empty for none."""
    reason = next((row for row in reasons.table() if row.name == name), None)
    return reason.meaning.partition(": ")[2] or reason.meaning if reason else ""


def forecast(source: End, target: End, port: int, switches: Switches) -> str | None:
    """Why a new connection would stay with TCP; None if it would be accelerated.

    As far as it can be told before: what the sockets themselves ask for shows when they are there.
    """
    if not switches.enabled:
        return _OFF
    if source.flags & NamespaceFlag.NO_REDIRECT or port in switches.plain_ports:
        return _OPTED_OUT
    if not target.endpoint:
        return _NOT_LOCAL
    if target.flags & NamespaceFlag.NO_REDIRECT:
        return _OPTED_OUT
    if source.endpoint == target.endpoint and not source.flags & NamespaceFlag.SIDECAR:
        return _NOT_LOCAL
    return None


@dataclass(frozen=True, slots=True)
class Staying:
    """A sender that would be better off with TCP and could not leave redirect yet.

    reason: why it should leave, a reason's name; obstacle: what was in the way, a key of `OBSTACLES`.
    """

    reason: str
    obstacle: str


#: What keeps a socket in redirect, as `explain` says it.
OBSTACLES = {
    "in-use": "a program waits in recv() on its socket, or was in a call on it each time",
    "unread": "bytes that were sent to it are not read",
}


def describe(
    found: RedirectConnection,
    names: Mapping[int, str],
    now: int,
    staying: Mapping[SocketKey, Staying],
) -> dict[str, Any]:
    """One connection as plain data. `names`: endpoint's number -> pod; `now`: nanoseconds, monotonic;
    `staying`: the senders that cannot leave redirect.
    """
    kept = {
        side: staying.get(SocketKey(cookie=found.cookie, generation=found.generation, side=side))
        for side in Side
    }
    notes = [
        f"its {side.name.lower()} would be better off with TCP ({one.reason}) but stays: "
        + OBSTACLES[one.obstacle]
        for side, one in kept.items()
        if one
    ]
    return {
        "client": f"{found.client}:{found.client_port}",
        "client_pod": names.get(found.client_endpoint, ""),
        "server": f"{found.server}:{found.server_port}",
        "server_pod": names.get(found.server_endpoint, ""),
        "accelerated": found.accelerated,
        "reason": found.reason.name if found.reason else "",
        "why": meaning(found.reason.name) if found.reason else "",
        "note": "; ".join(notes),
        "age_seconds": round(max(0, now - found.opened) / 1e9, 1) if found.opened else None,
        "from_client": _direction(found.from_client, kept[Side.CLIENT]),
        "from_server": _direction(found.from_server, kept[Side.SERVER]),
    }


def _direction(one: Sent, kept: Staying | None) -> dict[str, Any]:
    mean = one.latency_total / one.latency_samples if one.latency_samples else None
    return {
        "messages": one.messages,
        "bytes": one.bytes,
        "tcp_messages": one.tcp_messages,
        "tcp_bytes": one.tcp_bytes,
        "unread": one.unread,
        "latency_microseconds": round(mean / 1000, 1) if mean is not None else None,
        "last_by_tcp": one.reason.name if one.reason else "",
        "better_by_tcp": kept.reason if kept else "",
        "obstacle": kept.obstacle if kept else "",
    }


def between(
    connections: Iterable[RedirectConnection], source: End | None, target: End | None, port: int
) -> list[RedirectConnection]:
    """Those that `source` opened to `target` (None: anybody) at `port` (0: any)."""
    return [
        one
        for one in connections
        if (source is None or one.client_endpoint == source.endpoint)
        and (target is None or _is_at(one, target))
        and port in (0, one.server_port)
    ]


def _is_at(one: RedirectConnection, target: End) -> bool:
    if target.endpoint and one.server_endpoint:
        return one.server_endpoint == target.endpoint
    return str(one.server) == target.address


def older(
    entries: Iterable[tuple[FlowKey, ConntrackEntry]],
    known: Iterable[RedirectConnection],
    names: Mapping[int, str],
    now: int,
) -> list[RedirectConnection]:
    """Open TCP connections of pods whose sockets the programs have never looked at, as the client sees them.

    They were there before the datapath, or one end is no pod's socket of this node.
    """
    seen = {(str(one.client), one.client_port, str(one.server), one.server_port) for one in known}
    before = next(row for row in reasons.table() if row.name == _BEFORE)
    found = []
    for key, entry in entries:
        if key.protocol != _TCP or entry.direction != Direction.EGRESS or key.endpoint not in names:
            continue
        if not entry.flags & ConntrackFlag.SEEN_REPLY:  # nobody has answered: no connection yet
            continue
        if entry.flags & (
            _NOT_OPEN | ConntrackFlag.TRANSLATED
        ):  # translated: the socket knows another address
            continue
        where = (str(key.local), key.local_port, str(key.peer), key.peer_port)
        if where in seen:
            continue
        found.append(
            RedirectConnection(
                client=key.local,
                client_port=key.local_port,
                server=key.peer,
                server_port=key.peer_port,
                client_endpoint=key.endpoint,
                server_endpoint=0,
                sides=(),
                accelerated=False,
                reason=before,
                opened=entry.created,
            )
        )
    return found

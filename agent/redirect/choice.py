"""Which senders would be better off with TCP, by what their streams have carried. Pure.

Measured (docs/measure.md, "One-way streams"): TCP joins small messages to a segment, so a one-way stream of
them is slower from socket to socket where each end has a CPU of its own (on one CPU it is the slower, once
it has left); and a stream whose reader stays behind goes by TCP as it is, at a higher price.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

SMALL_MESSAGES, SLOW_READER = "SMALL_MESSAGES", "SLOW_READER"
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Limits:
    """What makes such a stream, and how long a departure is tried. docs/redirect.md says the same.

    A stream is judged by what it carried between two looks, about `seconds` apart; `looks` of them, one
    after the other, have to agree.
    small_bytes, small_per_second: messages of fewer bytes in the mean, of which more go in a second.
    behind_share, behind_bytes_per_second: this share of its bytes goes by TCP for a reader that is behind,
    and so many bytes in a second at the least.
    one_way: of so many messages at most one comes back.
    tries: how often each step is tried at one look; patience: at how many looks; then `rest` seconds go by.
    A try takes some 4 ms, most of it for going through the kernel's table of connections.
    """

    seconds: float = 0.5
    looks: int = 3
    small_bytes: int = 128
    small_per_second: int = 5000
    behind_share: float = 0.9
    behind_bytes_per_second: int = 4 << 20
    one_way: int = 100
    tries: int = 50
    patience: int = 5
    rest: float = 300.0


@dataclass(frozen=True, slots=True)
class Carried:
    """What one direction has carried: messages and bytes, redirected and by TCP. behind: the last message
    went by TCP for a reader that was behind.
    """

    messages: int
    bytes: int
    tcp_messages: int
    tcp_bytes: int
    behind: bool = False

    def since(self, before: Carried) -> Carried:
        """What came in addition; the counters of a stream only grow."""
        return Carried(
            self.messages - before.messages,
            self.bytes - before.bytes,
            self.tcp_messages - before.tcp_messages,
            self.tcp_bytes - before.tcp_bytes,
            self.behind,
        )


def better_by_tcp(sent: Carried, back: Carried, seconds: float, limits: Limits) -> str | None:
    """Why the sender of `sent` would be better off with TCP, None where it is not.

    sent, back: what both directions have carried in these seconds.
    """
    messages = sent.messages + sent.tcp_messages
    size = sent.bytes + sent.tcp_bytes
    if (back.messages + back.tcp_messages) * limits.one_way > messages:
        return None
    if messages > limits.small_per_second * seconds and size < limits.small_bytes * messages:
        return SMALL_MESSAGES
    if (
        sent.behind
        and sent.tcp_bytes >= limits.behind_share * size
        and sent.tcp_bytes >= limits.behind_bytes_per_second * seconds
    ):
        return SLOW_READER
    return None


class Watch(Generic[K]):
    """Looks at streams again and again; a stream's name and that of its other direction are the caller's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._at = 0.0
        self._before: Mapping[K, Carried] = {}
        self._found: dict[K, tuple[str, int]] = {}

    def forget(self) -> None:
        """There was nothing to look at: begin anew."""
        self._before, self._found = {}, {}

    def look(self, now: Mapping[K, Carried], back: Mapping[K, K], at: float) -> dict[K, str]:
        """The streams whose senders are to leave, and why. at: seconds, of any clock."""
        seconds, self._at = at - self._at, at
        before, self._before = self._before, dict(now)
        last, self._found = self._found, {}
        empty = Carried(0, 0, 0, 0)
        for name, carried in now.items():
            if name not in before:
                continue
            other = back.get(name)
            returned = empty
            if other is not None and other in now and other in before:
                returned = now[other].since(before[other])
            reason = better_by_tcp(carried.since(before[name]), returned, seconds, self._limits)
            if reason:
                kind, times = last.get(name, (reason, 0))
                self._found[name] = (reason, times + 1 if kind == reason else 1)
        return {name: reason for name, (reason, times) in self._found.items() if times >= self._limits.looks}

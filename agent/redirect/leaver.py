"""Has senders leave socket redirect that are better off with TCP: chosen by `choice`, done by the datapath.

How a socket leaves without harm stands in `datapath/include/leave.h`. What is under way is in the kernel, so
an agent that is started again goes on with it.
"""

from __future__ import annotations

import dataclasses
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from agent.links import NetnsGoneError, in_netns, open_netns
from agent.redirect.choice import SMALL_MESSAGES, Carried, Limits, Watch
from agent.redirect.explain import Staying
from datapath import libbpf, reasons
from datapath.constants import DepartureStep, Meeting, Obstacle, Place, Side
from datapath.maps import Maps
from datapath.redirect_tables import Departure, SocketKey, SocketState, Stream

#: A look may take this share of the time: with very many streams it comes more seldom.
SHARE = 0.02
_REDIRECTED, _BEHIND = "REDIRECTED", "READER_BEHIND"


class Leaver:
    """A thread that looks at all streams about twice a second, and takes senders out step by step."""

    def __init__(
        self,
        maps: Maps,
        netns: Callable[[int], str | None],
        log: Callable[..., None],
        limits: Limits | None = None,
    ) -> None:
        """`netns(endpoint)`: path of a pod's network namespace, None for a pod that is gone."""
        self._maps = maps
        self._netns = netns
        self._log = log
        self._limits = limits or Limits()
        self._watch: Watch[SocketKey] = Watch(self._limits)
        self._counted = (0, 0)
        self._counted_at = 0.0
        self._looks: Counter[SocketKey] = Counter()  # at which each departure was tried
        self._resting: dict[SocketKey, float] = {}
        self._staying: dict[SocketKey, Staying] = {}

    def run(self, stop: threading.Event) -> None:
        took = 0.0
        while not stop.wait(max(self._limits.seconds, took / SHARE)):
            began = time.monotonic()
            try:
                self.look(began)
            except OSError as fault:
                self._log("error", "streams not looked at", fault=str(fault))
            took = time.monotonic() - began

    def staying(self) -> Mapping[SocketKey, Staying]:
        """The senders that could not leave, as of the last look; may be called from any thread."""
        return dict(self._staying)

    def look(self, now: float) -> None:
        """Once: choose, and try the next steps of all that are chosen. now: seconds."""
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        chosen = self._chosen(now)
        if SMALL_MESSAGES in chosen.values():
            apart = _on_two_cpus(self._maps.redirect.sockets())
            chosen = {key: why for key, why in chosen.items() if why != SMALL_MESSAGES or key in apart}
        for key, reason in chosen.items():
            if key not in self._resting and self._maps.departures.entries.get(key) is None:
                self._maps.departures.ask(key, reasons.by_label()[reason])
        self._proceed(now)

    def _chosen(self, now: float) -> Mapping[SocketKey, str]:
        # Two counters say whether there can be such a stream at all; there seldom is.
        counts = (
            self._maps.metrics.get(_REDIRECTED, Place.SOCKET),
            self._maps.metrics.get(_BEHIND, Place.SOCKET),
        )
        messages = sum(counts) - sum(self._counted)
        behind = counts[1] - self._counted[1]
        seconds = now - self._counted_at
        self._counted, self._counted_at = counts, now
        if messages <= self._limits.small_per_second * seconds and not behind:
            self._watch.forget()
            return {}
        streams = carried(libbpf.map_items(self._maps.redirect.streams.fd, SocketKey.size(), Stream.size()))
        return self._watch.look(streams, {key: _other(key) for key in streams}, now)

    def _proceed(self, now: float) -> None:
        waiting = self._maps.departures.entries.read()
        for key in [key for key in self._staying if key not in waiting and key not in self._resting]:
            del self._staying[key]
        for key in [key for key in self._looks if key not in waiting]:
            del self._looks[key]
        pods: dict[int, list[SocketKey]] = {}
        for key, departure in waiting.items():
            stream = self._maps.redirect.streams.get(key)
            if stream is None or departure.step == DepartureStep.LEFT:
                self._maps.departures.entries.delete(key)  # closed meanwhile, or done
                continue
            self._looks[key] += 1
            if self._looks[key] > self._limits.patience:
                self._maps.departures.give_up(key)
                self._resting[key] = now + self._limits.rest
                del self._looks[key]
                self._log("info", "sender does not leave redirect", **_told(stream, departure))
            pods.setdefault(_endpoint(key, stream), []).append(key)
        for endpoint, keys in pods.items():
            try:
                self._leave(endpoint, keys)
            except OSError as fault:  # its namespace is going away, most likely: the others have theirs
                self._log("error", "senders not taken out", endpoint=endpoint, fault=str(fault))

    def _leave(self, endpoint: int, keys: Iterable[SocketKey]) -> None:
        """Try the steps of one pod's sockets until they are out, or something has to happen first."""
        path = self._netns(endpoint)
        if path is None:
            return
        entries = self._maps.departures.entries
        left: dict[SocketKey, Departure] = {}
        try:
            with open_netns(path) as descriptor:
                for _ in range(self._limits.tries):
                    in_netns(descriptor, self._maps.departures.step)
                    left = {key: found for key in keys if (found := entries.get(key))}
                    if all(_has_to_wait(found) for found in left.values()):
                        break
        except NetnsGoneError:
            return
        for key, found in left.items():
            stream = self._maps.redirect.streams.get(key)
            if found.step == DepartureStep.LEFT:
                entries.delete(key)
                self._staying.pop(key, None)
                if stream:
                    self._log("info", "sender has left redirect", **_told(stream, found))
            elif found.obstacle != Obstacle.NONE:
                self._staying[key] = Staying(_reason(found), _obstacle(found))


def _has_to_wait(departure: Departure) -> bool:
    """Is it out, or waiting for its program to read? A call on it is over in a moment, most often."""
    return departure.step == DepartureStep.LEFT or departure.obstacle == Obstacle.UNREAD


def _on_two_cpus(sockets: Iterable[SocketState]) -> set[SocketKey]:
    """The senders whose readers were mostly on another CPU."""
    return {
        SocketKey(cookie=reader.cookie, generation=reader.generation, side=1 - reader.side)
        for reader in sockets
        if reader.other_cpu > reader.same_cpu
    }


def _other(key: SocketKey) -> SocketKey:
    return dataclasses.replace(key, side=1 - key.side)


def _endpoint(key: SocketKey, stream: Stream) -> int:
    return stream.client_endpoint if key.side == Side.CLIENT else stream.server_endpoint


def _told(stream: Stream, departure: Departure) -> dict[str, str]:
    return {
        "client": f"{stream.client}:{stream.client_port}",
        "server": f"{stream.server}:{stream.server_port}",
        "side": Side(stream.side).name.lower(),
        "reason": _reason(departure),
        "obstacle": _obstacle(departure),
    }


def _reason(departure: Departure) -> str:
    return reasons.by_number()[departure.reason].name


def _obstacle(departure: Departure) -> str:
    return Obstacle(departure.obstacle).name.lower().replace("_", "-")


_PLACES = {field: at for field, at, _ in Stream.layout().fields}
_COUNTERS = struct.Struct("=4Q")  # messages, redirected, tcp_messages, tcp_bytes
_MEETING = struct.Struct("=Q")
_MET, _IS_BEHIND = int(Meeting.MET), reasons.by_label()[_BEHIND].number


def carried(streams: Iterable[tuple[bytes, bytes]]) -> dict[SocketKey, Carried]:
    """What each stream of an accelerated connection has carried, by its key. Keys and values as in the map.

    All streams are gone through each time, so only what is needed is read out of the bytes.
    """
    found = {}
    counters, meeting, reason = _PLACES["messages"], _PLACES["meeting"], _PLACES["reason"]
    for key, value in streams:
        if _MEETING.unpack_from(value, meeting)[0] == _MET:
            messages, redirected, tcp_messages, tcp_bytes = _COUNTERS.unpack_from(value, counters)
            behind = value[reason] == _IS_BEHIND
            found[SocketKey.unpack(key)] = Carried(messages, redirected, tcp_messages, tcp_bytes, behind)
    return found

"""Socket redirect on this node: its switches, its connections, its self-test, its counts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.redirect import explain, selftest
from agent.redirect.explain import End, Staying, Switches
from datapath import reasons
from datapath.constants import ConfigFlag, Place
from datapath.maps import Maps
from datapath.maps.redirect import RedirectConnection
from datapath.redirect_tables import SocketKey

AGAIN_SECONDS = 60.0
_REDIRECTED, _ACCELERATED = "REDIRECTED", "ACCELERATED"
# Reasons from here to the first that drops are why something stayed with TCP.
_FIRST_PLAIN = "REDIRECT_OFF"


@dataclass(frozen=True)
class Counts:
    """For metrics. `open`: living connections by reason ("" for accelerated ones). `plain`: sockets and
    messages that stayed with TCP since the maps were made, by reason. Latency in seconds, of what open
    connections have sampled.
    """

    open: Mapping[str, int]
    accelerated: int
    messages: int
    bytes: int
    plain: Mapping[str, int]
    latency_mean: float
    latency_most: float


class RedirectView:
    """Reads the datapath's maps; safe to use from many threads."""

    def __init__(
        self,
        maps: Maps,
        plain_ports: Callable[[], frozenset[int]],
        staying: Callable[[], Mapping[SocketKey, Staying]],
        log: Callable[..., None],
    ) -> None:
        """`staying`: the senders that would be better off with TCP and cannot leave."""
        self._maps = maps
        self._staying = staying
        self._plain_ports = plain_ports
        self._log = log
        self.tested = selftest.NOT_YET

    def switches(self) -> Switches:
        config = self._maps.read_config()
        enabled = config is not None and bool(config.flags & ConfigFlag.REDIRECT)
        return Switches(enabled, self._plain_ports())

    def run(self, stop: threading.Event) -> None:
        """Try it now, and again each minute until it works or the agent ends."""
        while not stop.is_set():
            before, self.tested = self.tested, selftest.run(self._maps, self.switches().enabled)
            if self.tested != before:
                level = "error" if self.tested.works is False else "info"
                self._log(level, "socket redirect tried", **self.tested.to_json())
            if self.tested.works:
                return
            stop.wait(AGAIN_SECONDS)

    def summary(self) -> dict[str, Any]:
        """For `status`."""
        switches = self.switches()
        found = self._connections()
        return {
            "enabled": switches.enabled,
            "plain_ports": sorted(switches.plain_ports),
            "self_test": self.tested.to_json(),
            "connections": len(found),
            "accelerated": sum(one.accelerated for one in found),
        }

    def explain(
        self, source: End | None, target: End | None, port: int, names: Mapping[int, str]
    ) -> dict[str, Any]:
        """What is and, with both ends given, what would be. `names`: endpoint's number -> pod."""
        now = time.monotonic_ns()
        known = self._connections()
        known += explain.older(self._maps.conntrack.live(), known, names, now)
        chosen = explain.between(known, source, target, port)
        staying = self._staying()
        answer: dict[str, Any] = {
            "source": source.name if source else "",
            "target": target.name if target else "",
            "port": port,
            "next": None,
            "connections": [
                explain.describe(one, names, now, staying)
                for one in sorted(chosen, key=lambda one: one.opened)
            ],
        }
        if source and target:
            reason = explain.forecast(source, target, port, self.switches())
            answer["next"] = {
                "accelerated": reason is None,
                "reason": reason or "",
                "why": explain.meaning(reason) if reason else "",
            }
        return answer

    def counts(self) -> Counts:
        found = self._connections()
        samples = [way for one in found for way in (one.from_client, one.from_server)]
        timed = sum(way.latency_samples for way in samples)
        first = reasons.by_label()[_FIRST_PLAIN].number
        at_sockets = {
            count.reason: count for count in self._maps.metrics.read() if count.place is Place.SOCKET
        }
        by_label = {reason.label: count for reason, count in at_sockets.items()}
        redirected = by_label.get(_REDIRECTED)
        accelerated = by_label.get(_ACCELERATED)
        return Counts(
            open=Counter(one.reason.name if one.reason else "" for one in found),
            accelerated=accelerated.packets if accelerated else 0,
            messages=redirected.packets if redirected else 0,
            bytes=redirected.bytes if redirected else 0,
            plain={
                reason.name: count.packets
                for reason, count in at_sockets.items()
                if reason.number >= first and not reason.drop
            },
            latency_mean=sum(way.latency_total for way in samples) / timed / 1e9 if timed else 0.0,
            latency_most=max((way.latency_most for way in samples), default=0) / 1e9,
        )

    def _connections(self) -> list[RedirectConnection]:
        return [one for one in self._maps.redirect.connections() if one.client_endpoint != selftest.ENDPOINT]

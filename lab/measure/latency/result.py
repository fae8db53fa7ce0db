"""Rows of measurements into medians, ratios and judged targets. Pure: nothing here measures.

A row is one measurement of one path in a round: `kind` (tcp, http, pair, throughput, stream), `mode` (free,
one CPU), `path`, `round`, `size` (bytes), `connections`, `percentiles` (us), `rate` (requests or bytes a
second), `cpu` (us of CPU a request or message, of a stream: of its sender alone; None where it is not known),
`errors`, `redirected` (share of a stream's bytes that went from socket to socket).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.measure.latency.paths import BRIDGE, IN_KERNEL, NO_PROXY, PROXIES, UNIX, WITH_POLICY
from lab.measure.statistics import figure, ratios

FREE, ONE_CPU = "free CPUs", "one CPU"
MODES = (FREE, ONE_CPU)
#: Kinds of streams: with a reader that keeps up, and with one that is slower than its sender for good.
STREAM, SLOW_STREAM = "stream", "stream, slow reader"
#: The message of the graph, bytes.
GRAPH_SIZE = 256


@dataclass(frozen=True)
class Row:
    """One measurement; see the module's text."""

    kind: str
    mode: str
    path: str
    round: int
    size: int
    connections: int = 1
    percentiles: dict[float, float] = field(default_factory=dict)
    rate: float = 0.0
    cpu: float | None = None
    errors: int = 0
    redirected: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "percentiles": {f"{share:g}": us for share, us in self.percentiles.items()}}


def series(
    rows: Iterable[Row], value: Callable[[Row], float | None], **wanted: Any
) -> dict[str, dict[int, float]]:
    """By path: round -> value, of the rows whose fields are as `wanted`."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if all(getattr(row, name) == value_ for name, value_ in wanted.items()):
            number = value(row)
            if number is not None:
                found.setdefault(row.path, {})[row.round] = number
    return found


def medians(rows: Iterable[Row], value: Callable[[Row], float | None], **wanted: Any) -> dict[str, float]:
    """By path: the median over the rounds."""
    return {path: statistics.median(found.values()) for path, found in series(rows, value, **wanted).items()}


def at(share: float) -> Callable[[Row], float | None]:
    """What reads a row's percentile."""
    return lambda row: row.percentiles.get(share)


def percentiles(rows: Sequence[Row], kind: str, mode: str) -> dict[str, dict[float, float]]:
    """By path: percentile -> median over the rounds, us: what the graph shows."""
    shares = sorted({share for row in rows for share in row.percentiles})
    wanted = {"kind": kind, "mode": mode, "size": GRAPH_SIZE, "connections": 1}
    found: dict[str, dict[float, float]] = {}
    for share in shares:
        for path, value in medians(rows, at(share), **wanted).items():
            found.setdefault(path, {})[share] = value
    return found


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The targets, each a ratio of one run: the median over the rounds of the ratio within a round."""
    lines: list[dict[str, Any]] = []
    for mode in MODES:
        for line in _of_mode(rows, mode):
            lines.append({"mode": mode, **line})
    return lines


def _of_mode(rows: Sequence[Row], mode: str) -> list[dict[str, Any]]:
    tcp = {
        share: series(rows, at(share), kind="tcp", mode=mode, size=GRAPH_SIZE, connections=1)
        for share in (50.0, 90.0, 99.0)
    }
    pair = series(rows, at(50.0), kind="pair", mode=mode, size=GRAPH_SIZE)
    cpu = series(rows, lambda row: row.cpu, kind="tcp", mode=mode, size=GRAPH_SIZE, connections=1)
    lines = []

    def add(name: str, found: dict[str, dict[int, float]], above: str, below: str, **target: float) -> None:
        both = sorted(found.get(above, {}).keys() & found.get(below, {}).keys())
        if both:
            values = ratios([found[above][n] for n in both], [found[below][n] for n in both])
            lines.append(figure(name, "x", values, **target))

    free = mode == FREE
    add(f"{IN_KERNEL} to {UNIX}, p50", pair, IN_KERNEL, UNIX, at_most=1.15 if free else 1.0)
    for share, found in tcp.items():
        name = f"{IN_KERNEL} to {NO_PROXY}, p{share:g}"
        if free:
            add(name, found, IN_KERNEL, NO_PROXY, at_most=1.0)
        elif share == 50.0:
            add(name, found, IN_KERNEL, NO_PROXY, at_most=0.5)
        else:
            add(name, found, IN_KERNEL, NO_PROXY)
    for proxy in PROXIES:
        target = {} if free else {"at_least": 3.4}
        add(f"{proxy} to {IN_KERNEL}, p50", tcp[50.0], proxy, IN_KERNEL, **target)
        add(f"{proxy} to {NO_PROXY}, p50", tcp[50.0], proxy, NO_PROXY)
    add(f"{NO_PROXY} to {BRIDGE}, p50", tcp[50.0], NO_PROXY, BRIDGE)
    target = {} if free else {"at_most": 0.6}
    add(f"CPU a request, {IN_KERNEL} to {NO_PROXY}", cpu, IN_KERNEL, NO_PROXY, **target)
    plain, guarded = tcp[50.0].get(IN_KERNEL, {}), tcp[50.0].get(WITH_POLICY, {})
    both = sorted(plain.keys() & guarded.keys())
    if both:
        more = [guarded[n] - plain[n] for n in both]
        lines.append(figure("policy and telemetry add, p50", "us", more, at_most=0.5))
    for size in sorted({row.size for row in rows if row.kind == "throughput"}):
        streams = series(rows, lambda row: row.rate, kind="throughput", mode=mode, size=size)
        add(
            f"throughput, {size} bytes, {IN_KERNEL} to {NO_PROXY}",
            streams,
            IN_KERNEL,
            NO_PROXY,
            at_least=0.95,
        )
        used = series(rows, lambda row: row.cpu, kind="throughput", mode=mode, size=size)
        add(f"CPU a message, one way, {size} bytes, {IN_KERNEL} to {NO_PROXY}", used, IN_KERNEL, NO_PROXY)
    for kind in (STREAM, SLOW_STREAM):
        for size in sorted({row.size for row in rows if row.kind == kind}):
            wanted = {"kind": kind, "mode": mode, "size": size}
            name = f"{kind}, {size} bytes, {IN_KERNEL}"
            rates = series(rows, lambda row: row.rate, **wanted)
            add(f"{name} to {NO_PROXY}, rate", rates, IN_KERNEL, NO_PROXY, at_least=0.95)
            # bytes for a CPU second are the size by the CPU of a message: the ratio stands on its head
            used = series(rows, lambda row: row.cpu, **wanted)
            add(f"{name} to {NO_PROXY}, bytes for the sender's CPU", used, NO_PROXY, IN_KERNEL, at_least=0.95)
            shares = series(rows, lambda row: row.redirected, **wanted).get(IN_KERNEL)
            if shares:
                lines.append(figure(f"{name}, redirected", "of its bytes", list(shares.values())))
    return lines


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each path and setting: medians over the rounds, and how far the rounds lay apart at p50."""
    groups: dict[tuple[str, str, str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.mode, row.path, row.size, row.connections), []).append(row)
    lines = []
    for (kind, mode, path, size, connections), group in groups.items():
        middle = [row.percentiles[50.0] for row in group if 50.0 in row.percentiles]
        cpu = [row.cpu for row in group if row.cpu is not None]
        redirected = [row.redirected for row in group if row.redirected is not None]
        shares = sorted({share for row in group for share in row.percentiles})
        lines.append(
            {
                "kind": kind, "mode": mode, "path": path, "size": size, "connections": connections,
                "rounds": len(group),
                **{f"p{share:g}": _median([row.percentiles[share] for row in group]) for share in shares},
                "p50_least": _round(min(middle)) if middle else None,
                "p50_most": _round(max(middle)) if middle else None,
                "rate": _median([row.rate for row in group]),
                "cpu_us": _median(cpu) if cpu else None,
                "redirected": _median(redirected) if redirected else None,
                "errors": sum(row.errors for row in group),
            }
        )  # fmt: skip
    return lines


def _median(values: Sequence[float]) -> float:
    return _round(statistics.median(values))


def _round(value: float) -> float:
    return float(f"{value:.4g}")

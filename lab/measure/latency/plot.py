"""Pictures of a result: the post's graph beside ours, and what message sizes and connections do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.measure.latency import post
from lab.measure.latency.paths import BRIDGE, IN_KERNEL, LARGEST, NO_PROXY, UNIX, WITH_POLICY
from lab.measure.latency.result import GRAPH_SIZE, MODES, SLOW_STREAM, STREAM, Row, at, medians, percentiles
from lab.measure.sidecars import ACCELERATED, PLAIN

#: Colours that people who see few of them tell apart (after Okabe and Ito); dashes for who sees none.
STYLES: dict[str, tuple[str, str, str]] = {
    UNIX: ("#999999", ":", "x"),
    IN_KERNEL: ("#009e73", "-", "o"),
    WITH_POLICY: ("#56b4e9", "--", "v"),
    NO_PROXY: ("#000000", "-", "s"),
    BRIDGE: ("#777777", "--", "d"),
    "Envoy": ("#d55e00", "-", "^"),
    "HAProxy": ("#cc79a7", "-", "P"),
    "nginx": ("#e69f00", "-", "D"),
    PLAIN: ("#0072b2", "--", "<"),
    ACCELERATED: ("#0072b2", "-", ">"),
}
SHARES = (50.0, 75.0, 90.0, 99.0)


def draw(rows: Sequence[Row], where: str, folder: Path) -> list[str]:
    """Write every picture that the rows give, each as PNG and SVG; the names of the PNG files."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display is needed
    from matplotlib import pyplot

    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "svg.hashsalt": "underpass",
    }
    names = []
    with mpl.rc_context(style):
        for name, figure in _figures(pyplot, rows, where):
            for suffix in ("png", "svg"):
                figure.savefig(folder / f"{name}.{suffix}", dpi=130, bbox_inches="tight")
            pyplot.close(figure)
            names.append(f"{name}.png")
    return names


def _figures(pyplot: Any, rows: Sequence[Row], where: str) -> list[tuple[str, Any]]:
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    figures = []
    if any(row.kind in ("tcp", "pair") for row in rows):
        title = f"TCP, {GRAPH_SIZE} bytes"
        figures.append(("latency", _percentile_plot(pyplot, rows, modes, "tcp", title, where, post=True)))
    if any(row.kind == "http" for row in rows):
        title = f"HTTP, {GRAPH_SIZE} bytes, one connection"
        figures.append(
            ("latency-http", _percentile_plot(pyplot, rows, modes, "http", title, where, post=False))
        )
    if any(row.kind == "tcp" and row.size != GRAPH_SIZE for row in rows):
        figures.append(("sizes", _over(pyplot, rows, modes, _SIZES, where)))
    if any(row.kind == "throughput" for row in rows):
        figures.append(("throughput", _over(pyplot, rows, modes, _THROUGHPUT, where)))
    for name, sweep in _STREAMS.items():
        if any(row.kind == sweep[0] for row in rows):
            figures.append((name, _over(pyplot, rows, modes, sweep, where)))
    if any(row.connections > 1 for row in rows):
        figures.append(("connections", _over(pyplot, rows, modes, _CONNECTIONS, where)))
    return figures


def _percentile_plot(
    pyplot: Any, rows: Sequence[Row], modes: Sequence[str], kind: str, title: str, where: str, *, post: bool
) -> Any:
    panels: list[tuple[str, Mapping[str, Mapping[float, float]]]] = []
    if post:
        panels.append(("The post, December 2017", _post()))
    for mode in modes:
        shown: dict[str, dict[float, float]] = percentiles(rows, kind, mode)
        if post:  # the limit is measured by a tool of its own; see the report
            shown |= {UNIX: found} if (found := percentiles(rows, "pair", mode).get(UNIX)) else {}
        panels.append((f"This machine, {mode}", shown))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.6), squeeze=False)
    for axis, (head, values_of) in zip(axes[0], panels, strict=True):
        for path, (colour, dash, marker) in STYLES.items():
            if path in values_of:
                values = [values_of[path].get(share) for share in SHARES]
                axis.plot(range(len(SHARES)), values, dash, color=colour, marker=marker, ms=5, label=path)
        axis.set_xticks(range(len(SHARES)), [f"p{share:g}" for share in SHARES])
        axis.set_title(head, loc="left", fontsize=11)
        axis.set_xlabel("percentile")
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("round trip, µs (lower is better)")
    _finish(figure, axes, title, where)
    return figure


def _post() -> dict[str, dict[float, float]]:
    return post.FIGURES


#: What is read of a row: us, requests or bytes a second, bytes for a microsecond of CPU.
_READ: dict[str, Callable[[Row], float | None]] = {
    "p50": at(50.0),
    "rate": lambda row: row.rate,
    "for cpu": lambda row: row.size / row.cpu if row.cpu else None,
}

#: (kind, field on the x axis, what is read, title, label of x, label of y, its factor)
_Sweep = tuple[str, str, str, str, str, str, float]
_SIZES: _Sweep = ("tcp", "size", "p50", "TCP, by message size", "message, bytes", "round trip, p50, µs", 1.0)
_THROUGHPUT: _Sweep = (
    "throughput", "size", "rate", "One way, by sockperf, by message size", "message, bytes", "Gbit/s", 8e-9,
)  # fmt: skip
_CPU = "Gbit for a second of the sender's CPU"
_STREAMS: dict[str, _Sweep] = {
    "streams": (STREAM, "size", "rate", "One-way stream, by message size", "message, bytes", "Gbit/s", 8e-9),
    "streams-cpu": (STREAM, "size", "for cpu", "One-way stream: its cost", "message, bytes", _CPU, 8e-3),
    "streams-slow": (
        SLOW_STREAM, "size", "for cpu", "To a slow reader: its cost", "message, bytes", _CPU, 8e-3,
    ),
}  # fmt: skip
_CONNECTIONS: _Sweep = (
    "http", "connections", "rate", "HTTP, by connections", "connections", "requests a second", 1.0,
)  # fmt: skip


def _over(pyplot: Any, rows: Sequence[Row], modes: Sequence[str], sweep: _Sweep, where: str) -> Any:
    kind, field, read, title, x_label, y_label, factor = sweep
    figure, axes = pyplot.subplots(1, len(modes), figsize=(5.6 * len(modes), 4.4), squeeze=False)
    value = _READ[read]
    steady = {"size": {"connections": 1}, "connections": {"size": GRAPH_SIZE}}[field]
    for axis, mode in zip(axes[0], modes, strict=True):
        places = sorted({getattr(row, field) for row in rows if row.kind == kind and row.mode == mode})
        found = {
            place: medians(rows, value, kind=kind, mode=mode, **{**steady, field: place}) for place in places
        }
        for path, (colour, dash, marker) in STYLES.items():
            points = [(place, found[place][path] * factor) for place in places if path in found[place]]
            if points:
                axis.plot(*zip(*points, strict=True), dash, color=colour, marker=marker, ms=5, label=path)
        axis.set_xscale("log", base=4 if field == "size" else 10)
        axis.set_xticks(places, [_short(place) for place in places])
        axis.minorticks_off()
        if field == "size":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_title(mode, loc="left", fontsize=11)
        axis.set_xlabel(x_label)
    axes[0][0].set_ylabel(y_label)
    _finish(figure, axes, title, where)
    return figure


def _finish(figure: Any, axes: Any, title: str, where: str) -> None:
    """One legend for all panels, in the order of the styles; title and machine."""
    known = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    order = [path for path in STYLES if path in known]
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.tight_layout(rect=(0, 0.04, 1, 0.99))
    figure.legend(
        [known[path] for path in order], order,
        loc="upper left", bbox_to_anchor=(1.0, 0.9), frameon=False,
    )  # fmt: skip
    figure.text(0.01, 0.0, where, fontsize=8, color="#666666")


def _short(size: int) -> str:
    """64, 1K, 64K."""
    return (
        "64K" if size == LARGEST else f"{size // 1024}K" if size >= 1024 and size % 1024 == 0 else str(size)
    )

"""Draws the documents' pictures: `.venv/bin/python docs/pictures/draw.py` writes the .png files beside it.

Each picture is a card with a ground of its own, so that it reads the same on a light page and on a dark one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).parent

GROUND, INK, FAINT = "#f6f8fa", "#1f2933", "#64748b"
NODE, POD, PART, KERNEL, WAY, PACKETS = "#e3eaf2", "#ffffff", "#ffffff", "#2b3a4a", "#0a8f5b", "#c2571a"


def card(width: float, height: float) -> Axes:
    """An empty card of `width` by `height` units; a unit is a tenth of an inch."""
    figure = plt.figure(figsize=(width / 10, height / 10))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    figure.patch.set_alpha(0)
    box(axes, 0.4, 0.4, width - 0.8, height - 0.8, GROUND, edge="#cbd5e1", corner=1.2)
    return axes


def box(
    axes: Axes, x: float, y: float, w: float, h: float, fill: str, *, edge: str = FAINT, corner: float = 0.7
) -> None:
    shape = FancyBboxPatch(
        (x, y), w, h, boxstyle=f"round,pad=0,rounding_size={corner}", facecolor=fill, edgecolor=edge, lw=1
    )
    axes.add_patch(shape)


def words(
    axes: Axes, x: float, y: float, text: str, *, size: float = 9, ink: str = INK, **style: str
) -> None:
    axes.text(x, y, text, fontsize=size, color=ink, **{"ha": "center", "va": "center", **style})


def part(
    axes: Axes, x: float, y: float, w: float, h: float, text: str, fill: str = PART, ink: str = INK
) -> None:
    box(axes, x, y, w, h, fill)
    words(axes, x + w / 2, y + h / 2, text, ink=ink)


def arrow(
    axes: Axes, path: Sequence[tuple[float, float]], colour: str, *, both: bool = False, lw: float = 1.6
) -> None:
    """A line through the points of `path`, with a head at its end."""
    for begin, end in itertools.pairwise(path[:-1]):
        axes.plot(*zip(begin, end, strict=True), color=colour, lw=lw, solid_capstyle="round")
    if both:
        axes.plot(*zip(path[0], path[1], strict=True), color=colour, lw=lw)
        axes.add_patch(_head(path[1], path[0], colour, lw))
    axes.add_patch(_head(path[-2], path[-1], colour, lw))


def _head(begin: tuple[float, float], end: tuple[float, float], colour: str, lw: float) -> FancyArrowPatch:
    style = "-|>,head_length=5,head_width=3"
    return FancyArrowPatch(begin, end, arrowstyle=style, color=colour, lw=lw, shrinkA=0, shrinkB=0)


def underpass() -> Axes:
    """Two nodes: socket to socket on one, packets between them."""
    axes = card(86, 41)
    for x, name in ((3, "node-1"), (54, "node-2")):
        w = 45 if name == "node-1" else 29
        box(axes, x, 6, w, 31.5, NODE)
        words(axes, x + 1.2, 35.6, name, size=10, ha="left", weight="bold")
        words(axes, x + w - 1.2, 35.6, "kubelet · containerd · agent", size=8, ink=FAINT, ha="right")
        box(axes, x + 1.5, 8, w - 3, 4.6, KERNEL, edge=KERNEL)
        words(axes, x + w / 2, 10.3, "TCP/IP, and BPF at each pod's cable", ink="white", size=8)
    for x, name in ((6, "frontend"), (29, "orders"), (59, "reports")):
        box(axes, x, 22, 16, 11, POD)
        words(axes, x + 8, 31.2, name, weight="bold")
        part(axes, x + 4.5, 23, 7, 3.2, "socket", "#e8f5ee", WAY)
        words(axes, x + 8, 28.6, "application", size=8, ink=FAINT)
    arrow(axes, [(15, 23), (15, 18.5), (36, 18.5), (36, 23)], WAY, both=True, lw=2.6)
    words(axes, 25.5, 20, "socket to socket", size=9, ink=WAY, weight="bold")
    words(
        axes,
        24.5,
        16.6,
        "below the proxy and below TCP/IP,\npolicy still enforced",
        size=8,
        ink=WAY,
        va="top",
    )
    arrow(axes, [(39, 23), (39, 12.6)], PACKETS)
    arrow(axes, [(39, 8), (39, 4), (67, 4), (67, 8)], PACKETS)
    arrow(axes, [(67, 12.6), (67, 23)], PACKETS)
    words(axes, 51.1, 5.2, "packets", size=8, ink=PACKETS)
    return axes


def architecture() -> Axes:
    """From a lab file to a running datapath, and back to what people see."""
    axes = card(92, 60)
    box(axes, 3, 4, 23, 53, NODE)
    words(axes, 14.5, 55, "your machine", weight="bold", size=10)
    steps = (
        (46, "lab.yaml", "lab.yaml: what a lab is"),
        (37, "", "lab/: steps, providers,\nartifact store, builds"),
        (27, "", "provider: makes nodes\n(system containers, VMs)"),
        (17, "", "playbooks/: everything\nthat changes a node"),
        (7, "", "guides, verify, report,\nmeasure"),
    )
    for y, _, text in steps:
        part(axes, 5, y, 19, 6.4, text)
    for y in (46, 37, 27):
        arrow(axes, [(14.5, y), (14.5, y - (2.6 if y == 46 else 3.6))], FAINT)
    box(axes, 32, 4, 57, 53, NODE)
    words(axes, 60.5, 55, "every node (Debian 13, systemd)", weight="bold", size=10)
    part(axes, 34, 46, 17, 6.4, "containerd, kubelet")
    part(axes, 53, 46, 17, 6.4, "control plane:\netcd, API server, ...")
    part(axes, 72, 46, 15, 6.4, "pods, Istio's\nsidecars")
    box(axes, 34, 26.5, 53, 16, "#fbfcfe")
    words(axes, 35.2, 40.8, "agent/", weight="bold", ha="left")
    words(axes, 86, 40.8, "one process, never carries a packet", size=8, ink=FAINT, ha="right")
    for x, text in ((35, "planes"), (45.2, "model"), (55.4, "compile"), (65.6, "tables"), (75.8, "sync")):
        part(axes, x, 33.5, 8.4, 5, text)
    for x in (43.4, 53.6, 63.8, 74):
        arrow(axes, [(x, 36), (x + 1.8, 36)], INK)
    part(axes, 35, 28, 20, 4, "CNI plugin and server, IPAM")
    part(axes, 58, 28, 26.2, 4, "flows, metrics, command underpass")
    box(axes, 34, 6, 53, 17, KERNEL, edge=KERNEL)
    words(axes, 35.2, 21.2, "datapath/ in the kernel", ink="white", weight="bold", ha="left")
    words(axes, 70, 21.2, "compiled on the node by BCC", ink="#cbd5e1", size=8, ha="right")
    part(axes, 36, 15.2, 49, 4, "pinned BPF maps", "#3d5166", "white")
    for x, text in (
        (36, "tc: policy,\noverlay"),
        (53, "cgroup: Services\nat connect()"),
        (70, "sockets: redirect"),
    ):
        part(axes, x, 7.6, 15, 5.4, text, "#3d5166", "white")
    for x in (43.5, 60.5, 77.5):
        arrow(axes, [(x, 13), (x, 15.2)], "white", both=True)
    arrow(axes, [(84.2, 36), (85.6, 36), (85.6, 25), (80, 25), (80, 19.2)], WAY)
    arrow(axes, [(73, 19.2), (73, 28)], PACKETS)
    arrow(axes, [(39.2, 46), (39.2, 38.5)], FAINT)
    words(axes, 40.2, 44.3, "CNI, Kubernetes API", size=7.5, ink=FAINT, ha="left")
    arrow(axes, [(24, 20.2), (32, 20.2)], FAINT)
    words(axes, 28.4, 21.6, "ssh", size=8, ink=FAINT)
    return axes


PICTURES: dict[str, Callable[[], Axes]] = {"underpass": underpass, "architecture": architecture}


def main() -> None:
    mpl.rcParams.update({"font.family": "DejaVu Sans"})
    for name, draw in PICTURES.items():
        axes = draw()
        axes.figure.savefig(FOLDER / f"{name}.png", dpi=200, metadata={"Software": None})
        plt.close("all")


if __name__ == "__main__":
    main()

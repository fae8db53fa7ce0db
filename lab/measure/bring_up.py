"""`lab measure bring-up`: how long the parts of a lab's life take, and the memory it needs idle.

Measured on a lab of its own, made and removed here, with a warm artifact store. Times are wall
clock seconds on this machine; only medians and spread over the rounds are reported.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import builds, lifecycle, ssh
from lab import render as rendering
from lab.labfile import load
from lab.render import Rendered
from lab.run import run
from lab.steps import Steps

#: What this project promises, seconds and MiB, on 2 cores.
TARGETS = {"build": 3.0, "up": 60.0, "again": 20.0, "stop_start": 40.0, "idle_memory_mib": 1600.0}
UP_WITH_ISTIO = 90.0

#: Proportional set size of every process on a node: shared pages are counted once over all.
_PSS = r"""awk '/^Pss:/ {kib += $2} END {print int(kib / 1024)}' /proc/[0-9]*/smaps_rollup 2>/dev/null"""


@dataclass
class Series:
    """Values of one quantity over the rounds."""

    name: str
    unit: str
    target: float
    values: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        median = statistics.median(self.values)
        return {
            **asdict(self),
            "median": round(median, 2),
            "least": round(min(self.values), 2),
            "most": round(max(self.values), 2),
            "met": median <= self.target,
        }


def measure(file: Path, steps_for: Callable[[], Steps], rounds: int, settle: float) -> list[dict[str, Any]]:
    """Run `rounds` lives of the lab in `file`; `settle` is the seconds of rest before memory is read."""
    lab = rendering.render(load(file))
    build = Series("build_again", "s", TARGETS["build"])
    up = Series("up", "s", UP_WITH_ISTIO if lab.istio_version else TARGETS["up"])
    again = Series("again", "s", TARGETS["again"])
    stop_start = Series("stop_start", "s", TARGETS["stop_start"])
    memory = Series("idle_memory", "MiB", TARGETS["idle_memory_mib"])
    builds.build_all(steps_for())  # a warm store is what the figures are of
    for _ in range(rounds):
        try:
            build.values.append(_timed(_build_again))
            up.values.append(_timed(lambda: lifecycle.up(file, steps_for())))
            again.values.append(_timed(lambda: lifecycle.up(file, steps_for())))
            time.sleep(settle)  # idle is what is measured: let start-up work end
            memory.values.append(sum(idle_memory(lab).values()))
            stop_start.values.append(_timed(lambda: _stop_start(lab, steps_for)))
        finally:
            lifecycle.down(lab, steps_for())
    return [series.to_dict() for series in (build, up, again, stop_start, memory)]


def idle_memory(lab: Rendered) -> dict[str, int]:
    """MiB that the processes of each node hold now."""
    return {node.name: int(ssh.on_node(lab, node, ["sh", "-c", _PSS]).stdout) for node in lab.nodes}


def _build_again() -> None:
    """The whole command, as a user waits for it."""
    run([sys.executable, "-m", "lab", "build", "--progress=none"])


def _stop_start(lab: Rendered, steps_for: Callable[[], Steps]) -> None:
    lifecycle.stop(lab, steps_for())
    lifecycle.start(lab, steps_for())


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began

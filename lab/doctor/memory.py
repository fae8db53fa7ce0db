"""The probe of memory: the host's, and the limit of the control group that we live in."""

from __future__ import annotations

from pathlib import Path

from lab import builds
from lab.doctor.finding import Probe, Seen, fail, ok, warn
from lab.doctor.present import running
from lab.providers.vagrant import settings
from lab.render import Rendered

#: MiB that a node takes when idle (container runtime, kubelet, systemd), and what a control plane adds.
NODE_MIB = 250
CONTROL_PLANE_MIB = 500
#: MiB that an emulator takes beside its machine's own: what it has translated is kept (QEMU 7: up to 1 GiB).
EMULATOR_MIB = 1024
#: MiB that the largest link of the builds takes at its peak.
BUILD_MIB = 3000


def probes(lab: Rendered) -> list[Probe]:
    return [Probe("memory", "Memory", lambda: memory(lab), root=False)]


def memory(lab: Rendered) -> Seen:
    """Compare what is there, and what is free, with what the lab takes."""
    known = _fields(Path("/proc/meminfo").read_text(encoding="ascii"))
    limit = _limit(Path("/proc/self/cgroup").read_text(encoding="ascii"))
    building = any(recipe.name not in builds.locate() for recipe in builds.needed())
    up = running(lab) == len(lab.nodes)
    takes = max(taken(lab), BUILD_MIB if building else 0)
    return judge(
        total=min([known["MemTotal"] + known.get("SwapTotal", 0), *limit]),
        free=known["MemAvailable"] + known.get("SwapFree", 0),
        takes=takes,
        is_up=up and not building,
    )


def taken(lab: Rendered) -> int:
    """MiB that the lab takes when it is up and idle."""
    if lab.provider == "vagrant":
        return sum(settings.memory(lab, node) + EMULATOR_MIB for node in lab.nodes)
    return NODE_MIB * len(lab.nodes) + CONTROL_PLANE_MIB


def judge(*, total: int, free: int, takes: int, is_up: bool) -> Seen:
    """All in MiB. A lab that is up has its memory already, so that only the total counts."""
    seen = f"{free} MiB free of {total} MiB; {takes} MiB needed"
    if total < takes:
        return fail(
            seen,
            "the machine has too little memory for the lab (or for building its artifacts)",
            "use a machine with more memory or swap, or fewer nodes in the lab file; "
            "artifacts can be built elsewhere: lab bundle create FILE there, lab bundle load FILE here",
        )
    if free < takes and not is_up:
        return warn(
            seen,
            "other programs hold so much memory that the lab may be slow, or be ended by the kernel",
            "end some of them, or take other labs down: lab status --all",
        )
    return ok(seen)


def _fields(text: str) -> dict[str, int]:
    """/proc/meminfo as MiB."""
    return {line.split(":")[0]: int(line.split()[1]) >> 10 for line in text.splitlines() if "kB" in line}


def _limit(groups: str) -> list[int]:
    """The memory limits (MiB) of our own control group and those above it."""
    found = []
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            found += _limits(Path("/sys/fs/cgroup"), path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
    return found


def _limits(mount: Path, path: str, name: str) -> list[int]:
    here = mount / path.lstrip("/")
    values = []
    for folder in (here, *here.parents):
        try:
            text = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            text = "max"
        if text != "max":
            values.append(int(text) >> 20)
        if folder == mount:
            break
    return values

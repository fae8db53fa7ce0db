"""The probe of control groups, and the doctor's own groups for it and for the node that it tries."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.doctor.bpf.programs import ATTACH_SOCK_OPS, SOCK_OPS, smallest
from lab.doctor.bpf.programs import KINDS as PROGRAM_KINDS
from lab.doctor.bpf.syscall import RefusedError, attach_to_cgroup, program
from lab.doctor.finding import Probe, Seen, fail, ok
from lab.errors import LabError
from lab.providers.nspawn.cgroups import Cgroups, Hierarchy, hierarchies

#: What kubelet does not start without.
CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}

PREFIX = "underpass-doctor."

BOOT_FIX = (
    "boot the host with its distribution's defaults (cgroup v2 alone), without systemd.legacy_systemd_cgroup_"
    "controller or cgroup_disable; in a container, give it /sys/fs/cgroup writable"
)


def probes() -> list[Probe]:
    return [Probe("cgroups", "Control groups", control_groups)]


@contextmanager
def own(purpose: str) -> Iterator[list[tuple[Hierarchy, Path]]]:
    """A new group in every hierarchy, gone at the end with all in it; a killed doctor's go too."""
    where = hierarchies()
    for hierarchy in where:
        for old in hierarchy.mount.glob(f"{PREFIX}*"):
            match = re.fullmatch(rf"{re.escape(PREFIX)}(\d+)\..*", old.name)
            if match and not Path("/proc", match[1]).exists():
                Cgroups(old.name, where).remove()
    name = f"{PREFIX}{os.getpid()}.{purpose}"
    try:
        yield [(hierarchy, _made(hierarchy, name)) for hierarchy in where]
    finally:
        Cgroups(name, where).remove()


def _made(hierarchy: Hierarchy, name: str) -> Path:
    folder = hierarchy.mount / name
    folder.mkdir(exist_ok=True)
    if "cpuset" in hierarchy.controllers:  # empty when new, and then takes no process
        for file in ("cpuset.cpus", "cpuset.mems"):
            (folder / file).write_text((hierarchy.mount / file).read_text("ascii").strip(), "ascii")
    return folder


def control_groups() -> Seen:
    """Make a group in every hierarchy, move a process in, attach a BPF program to the v2 one."""
    try:
        where = hierarchies()
    except LabError as fault:
        return fail("no cgroup v2 hierarchy", fault.message, fault.hint or BOOT_FIX)
    mode = _mode(where)
    try:
        with own("group") as groups:
            _move_in(groups)
            _attach(groups[0][1])
    except OSError as fault:
        read_only = fault.errno == errno.EROFS
        return fail(
            f"{mode}; {fault}",
            "the control groups are mounted read-only" if read_only else "the kernel refused a control group",
            BOOT_FIX,
        )
    except RefusedError as fault:
        return fail(
            f"{mode}; attaching to the v2 group: {fault}",
            "the kernel refused a BPF program on a control group",
            "use a kernel with CONFIG_CGROUP_BPF, as root of the machine itself",
        )
    lacking = CONTROLLERS - _controllers(where)
    if lacking:
        return fail(
            f"{mode}; no {', '.join(sorted(lacking))} controller",
            "kubelet does not start without these controllers",
            BOOT_FIX,
        )
    return ok(f"{mode}; a process moved in, a BPF program attached")


def _mode(where: list[Hierarchy]) -> str:
    if len(where) == 1:
        return "v2"
    names = sorted(name for hierarchy in where for name in hierarchy.controllers)
    return f"hybrid (v2 beside v1: {', '.join(names)})"


def _controllers(where: list[Hierarchy]) -> set[str]:
    found = {name for hierarchy in where for name in hierarchy.controllers}
    for hierarchy in where:
        if hierarchy.version == 2:
            found |= set((hierarchy.mount / "cgroup.controllers").read_text("ascii").split())
    return found


def _move_in(groups: list[tuple[Hierarchy, Path]]) -> None:
    """A process of ours into each group; it waits for its stdin and ends when that is closed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        for _, folder in groups:
            (folder / "cgroup.procs").write_text(str(process.pid), "ascii")


def _attach(group: Path) -> None:
    kind = next(kind for kind in PROGRAM_KINDS if kind.type == SOCK_OPS)
    handle = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with program(kind.type, smallest(kind), attach=kind.attach) as loaded:
            attach_to_cgroup(handle, loaded, ATTACH_SOCK_OPS)
    finally:
        os.close(handle)

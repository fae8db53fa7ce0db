"""The nodes' control groups: one directory per node in every hierarchy that the host has mounted.

A host has cgroup v2 alone, or v1 hierarchies with v2 beside them ("hybrid"). A node's processes are
born in its directory of each of them, so that the node's cgroup namespaces are rooted there, limits
hold for the node as a whole, and whatever runs in it can be found and ended without asking it.

The directories live as long as the node runs: programs that were attached to them, and controllers
that were enabled in them, must not outlive a power-off.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import emulation
from lab.errors import ExitCode, LabError, die
from lab.providers.nspawn import mounts
from lab.retry import until

#: What kubelet wants to find enabled, where the host has it.
WANTED = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")

PERIOD = 100_000  # microseconds, the kernel's own default period of a CPU quota
MIB = 1024 * 1024
END_SECONDS = 10.0

#: A limit that v1 shows for "none" is a huge number of whole pages.
UNLIMITED_V1 = 1 << 60


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy: where, which version, with which controllers (of v1)."""

    mount: Path
    version: int
    controllers: frozenset[str]

    @property
    def divided(self) -> bool:
        """Whether systemd inside the node makes directories in it, and nspawn one beside for itself."""
        return self.version == 2 or "name=systemd" in self.controllers


def parse(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies in a /proc/PID/mountinfo, v2 first, each once (its first mount)."""
    found: dict[tuple[int, frozenset[str]], Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2") or fields[3] != "/":
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        options = kind[2].split(",") if version == 1 else []
        names = frozenset(o for o in options if o not in ("rw", "ro") and not _is_setting(o))
        found.setdefault((version, names), Hierarchy(Path(mounts.unescape(fields[4])), version, names))
    return sorted(found.values(), key=lambda hierarchy: -hierarchy.version)


def _is_setting(option: str) -> bool:
    """Whether an option of a v1 mount is not a controller: `release_agent=...`, `xattr`, `noprefix`."""
    return option in ("xattr", "noprefix", "none", "clone_children") or (
        "=" in option and not option.startswith("name=")
    )


def hierarchies() -> list[Hierarchy]:
    """The host's hierarchies, v2 first; without v2 nothing of ours can work."""
    found = parse(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if not found or found[0].version != 2:
        die(
            "the host has no cgroup v2 hierarchy mounted",
            hint="boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 beside the v1 hierarchies",
            code=ExitCode.HOST,
        )
    return found


class Cgroups:
    """One directory (`path`, below each hierarchy's root) and all below it."""

    def __init__(self, path: str, where: Sequence[Hierarchy] | None = None) -> None:
        self.path = path
        self.where = list(where) if where is not None else hierarchies()

    def folders(self) -> list[Path]:
        """The directory in each hierarchy, there or not, v2 first."""
        return [hierarchy.mount / self.path for hierarchy in self.where]

    def existing(self) -> list[Path]:
        """Those that are there."""
        return [folder for folder in self.folders() if folder.is_dir()]

    def make(self) -> int:
        """Make what is missing; returns how many directories that were."""
        made = 0
        for hierarchy in self.where:
            here = hierarchy.mount
            for part in Path(self.path).parts:
                if hierarchy.version == 2:
                    _enable(here)
                here = here / part
                if not here.is_dir():
                    here.mkdir(exist_ok=True)
                    made += 1
                if "cpuset" in hierarchy.controllers:
                    _inherit_cpuset(here)
        return made

    def make_beside(self) -> list[Path]:
        """Where a process that belongs to the node, and is not in it, may live.

        Where nspawn divides the node's directory (`payload` for the node, `supervisor` for itself),
        no process can stay in it: v2 would refuse to enable controllers for the two.
        """
        beside = []
        for hierarchy in self.where:
            folder = hierarchy.mount / self.path / ("supervisor" if hierarchy.divided else "")
            folder.mkdir(exist_ok=True)
            beside.append(folder)
        return beside

    def limit(self, cpus: float | None, memory: int | None) -> int:
        """Hold everything in here to `cpus` and `memory` MiB (None for no limit); counts changes."""
        return self._limit_cpus(cpus) + self._limit_memory(memory)

    def _limit_cpus(self, cpus: float | None) -> int:
        folder, version = self._controller("cpu", wanted=cpus is not None)
        if folder is None:
            return 0
        if version == 2:
            value = f"{round(cpus * PERIOD)} {PERIOD}" if cpus else f"max {PERIOD}"
            return _write(folder / "cpu.max", value)
        quota = str(round(cpus * PERIOD)) if cpus else "-1"
        return _write(folder / "cpu.cfs_period_us", str(PERIOD)) + _write(folder / "cpu.cfs_quota_us", quota)

    def _limit_memory(self, memory: int | None) -> int:
        folder, version = self._controller("memory", wanted=memory is not None)
        if folder is None:
            return 0
        if version == 2:
            changed = _write(folder / "memory.max", str(memory * MIB) if memory else "max")
            swap = folder / "memory.swap.max"
            if swap.exists():  # or a node at its limit would go on in the host's swap
                changed += _write(swap, "0" if memory else "max")
            return changed
        file = folder / "memory.limit_in_bytes"
        if memory is None and int(file.read_text()) >= UNLIMITED_V1:
            return 0
        return _write(file, str(memory * MIB) if memory else "-1")

    def _controller(self, name: str, *, wanted: bool) -> tuple[Path | None, int]:
        """The directory where controller `name` takes limits, and its version."""
        for hierarchy in self.where:
            folder = hierarchy.mount / self.path
            if name in hierarchy.controllers:
                return folder, 1
            if hierarchy.version == 2 and name in _words(folder / "cgroup.controllers"):
                return folder, 2
        if wanted:
            die(
                f"the host's cgroups have no {name} controller, so a node's {name} cannot be limited",
                hint=f"remove the limit from the lab file, or boot the host with cgroup_enable={name}",
                code=ExitCode.HOST,
            )
        return None, 0

    def processes(self) -> set[int]:
        """The processes in here and below, in any hierarchy (as this process's pid namespace has them)."""
        return {pid for folder in self.existing() for directory in _tree(folder) for pid in _pids(directory)}

    def kill(self, seconds: float = END_SECONDS) -> int:
        """End every process in here at once, as a power cut would; returns how many there were."""
        victims = self.processes()
        if not victims:
            return 0
        for hierarchy in self.where:
            folder = hierarchy.mount / self.path
            if "freezer" in hierarchy.controllers:  # v1 holds even a killed process while frozen
                for directory in _tree(folder):
                    _try_write(directory / "freezer.state", "THAWED")
            if hierarchy.version == 2:
                _try_write(folder / "cgroup.kill", "1")
        if not until(lambda: not self.processes(), seconds * emulation.slowness()):
            left = [f"{pid}: {_command(pid)}" for pid in sorted(self.processes())]
            raise LabError(
                f"{len(left)} processes in cgroup {self.path} outlive being killed by {seconds:g} s",
                details=left,
                hint="a process in uninterruptible sleep waits for the kernel: see `dmesg`",
                code=ExitCode.NODE,
            )
        return len(victims)

    def remove(self, seconds: float = END_SECONDS) -> int:
        """End what runs in here and remove the directories; returns how many trees were removed."""
        self.kill(seconds)
        folders = self.existing()
        for folder in folders:
            # A directory is busy until the last process in it is gone altogether, with its
            # namespaces and mounts: longer than until it leaves cgroup.procs.
            if not until(lambda folder=folder: _removed(folder), seconds * emulation.slowness()):  # type: ignore[misc]
                raise LabError(
                    f"cgroup {folder} stays busy",
                    details=[f"{pid}: {_command(pid)}" for pid in sorted(self.processes())],
                    hint="something on the host still uses it; end that and try again",
                    code=ExitCode.NODE,
                )
        return len(folders)


def _enable(folder: Path) -> None:
    """Let the children of a v2 directory have the controllers that the directory has."""
    control = folder / "cgroup.subtree_control"
    enabled = _words(control)
    for name in sorted(_words(folder / "cgroup.controllers") & set(WANTED) - enabled):
        _try_write(control, f"+{name}")  # refused for some at times; a limit that needs it says so


def _inherit_cpuset(folder: Path) -> None:
    """Fill a new v1 cpuset, which begins empty and then takes no process, from its parent."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        if not file.read_text().strip():
            file.write_text((folder.parent / name).read_text().strip())


def _write(file: Path, value: str) -> int:
    """Set a cgroup file; returns 1 if it held something else before."""
    if file.read_text().strip() == value:
        return 0
    try:
        file.write_text(value)
    except OSError as fault:
        busy = fault.errno == errno.EBUSY
        die(
            f"cannot set {file} to {value}: {fault.strerror}",
            hint="the node uses more than that now; stop it first" if busy else None,
            code=ExitCode.NODE,
        )
    return 1


def _try_write(file: Path, value: str) -> None:
    # The directory may be gone, or the kernel refuse: callers look at the outcome.
    with contextlib.suppress(OSError):
        file.write_text(value)


def _removed(top: Path) -> bool:
    """Remove a cgroup's directories, innermost first; whether all are gone."""
    for directory in reversed(list(_tree(top))):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError as fault:
            if fault.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            return False
    return not top.is_dir()


def _tree(top: Path) -> Iterator[Path]:
    """A cgroup's directory and all below, outermost first; those that vanish meanwhile are left out."""
    if top.is_dir():
        for here, _, _ in os.walk(top):
            yield Path(here)


def _pids(directory: Path) -> list[int]:
    try:
        # 0 stands for a process outside our pid namespace
        return [pid for pid in map(int, (directory / "cgroup.procs").read_text().split()) if pid]
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise


def _words(file: Path) -> set[str]:
    try:
        return set(file.read_text().split())
    except FileNotFoundError:
        return set()


def _command(pid: int) -> str:
    """What a process is called, for a person."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return line.strip() or Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "(gone)"

"""Probes of file systems: overlay mounts where the nodes' disks will be, BPF's own, and room."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import builds, paths
from lab.doctor.finding import Probe, Seen, fail, ok
from lab.doctor.present import running
from lab.doctor.scratch import MAKE_PRIVATE, UNSHARE_MOUNTS, folder, mount, nearest, with_private_mounts
from lab.providers import provider
from lab.render import Rendered
from lab.store.space import human

GIB = 1 << 30

#: What all artifacts take in the store for good, and a cold build in Go's own caches.
STORE_BYTES = 2 * GIB
GO_CACHES_BYTES = 4 * GIB
#: What a node's disk takes with Kubernetes on it and images unpacked (0.4 GiB), and room to work.
NODE_BYTES = GIB
RUNNING_NODE_BYTES = GIB // 4
#: What a virtual machine takes with a snapshot of its memory, and what machines share (box, artifacts).
MACHINE_BYTES = 4 * GIB
MACHINE_SHARED_BYTES = 2 * GIB

#: The features that the provider turns off, so that a disk may be put onto a rebuilt image.
OVERLAY_OPTIONS = "redirect_dir=off,metacopy=off,index=off,xino=off"


#: Cause and fix where mounting itself is refused.
NO_RIGHTS = (
    "mounts cannot be made here",
    "run as root of the machine itself; a container needs CAP_SYS_ADMIN and its own mounts, a chroot a mount "
    "at its root",
)


def probes(lab: Rendered) -> list[Probe]:
    return [
        Probe("overlayfs", "overlayfs where the nodes' disks are", overlay),
        Probe("bpffs", "BPF file systems", bpffs),
        *room_probes(lab),
    ]


def room_probes(lab: Rendered) -> list[Probe]:
    return [Probe("disk", "Disk space", lambda: room(wants(lab)), root=False)]


def overlay() -> Seen:
    """Mount an overlay of the cache's and the state's file systems; read, write, remove and re-make in it."""
    lower_base, upper_base = paths.cache(), paths.state()
    with folder(lower_base) as lower, folder(upper_base) as top:
        for part in ("upper", "work", "root"):
            (top / part).mkdir()
        (lower / "kept").write_text("kept", encoding="ascii")
        (lower / "removed").write_text("removed", encoding="ascii")
        (lower / "folder").mkdir()
        (lower / "folder" / "inner").touch()
        # Relative paths in the options: commas and colons have a meaning in them.
        options = f"lowerdir={_link(top, lower)},upperdir=upper,workdir=work,{OVERLAY_OPTIONS}"

        def try_it() -> None:
            os.chdir(top)  # of this thread alone: its file system state is its own
            mount("overlay", "root", "overlay", options)
            root = Path("root")
            if root.joinpath("kept").read_text(encoding="ascii") != "kept":
                raise OSError("the lower file reads differently")
            root.joinpath("new").write_text("new", encoding="ascii")
            root.joinpath("removed").unlink()
            shutil.rmtree(root / "folder")
            root.joinpath("folder").mkdir()
            if list(root.joinpath("folder").iterdir()):
                raise OSError("a folder that was removed and made again is not empty")

        where = f"upper in {nearest(upper_base)}, lower in {nearest(lower_base)}"
        try:
            with_private_mounts(try_it)
            if not stat.S_ISCHR((top / "upper" / "removed").lstat().st_mode):
                raise OSError("a removed file left no mark in the upper layer")
        except OSError as fault:
            if _without_rights(fault):
                return fail(f"{where}: {fault}", *NO_RIGHTS)
            return fail(
                f"{where}: {fault}",
                "the file system there cannot carry an overlay's layers "
                "(as NFS, eCryptfs, or another overlay, in a container)",
                "set UNDERPASS_STATE (and UNDERPASS_CACHE) to folders on ext4, xfs or btrfs; "
                "the kernel needs CONFIG_OVERLAY_FS",
            )
    return ok(where)


def _link(top: Path, lower: Path) -> str:
    """A name for `lower` without characters that overlayfs gives a meaning."""
    (top / "lower").symlink_to(lower)
    return "lower"


def bpffs() -> Seen:
    """Mount a BPF file system, as each node gets one of its own."""
    with folder(paths.state()) as top:

        def try_it() -> None:
            mount("bpf", str(top), "bpf", "mode=0700")
            (top / "made").mkdir()

        try:
            with_private_mounts(try_it)
        except OSError as fault:
            if _without_rights(fault):
                return fail(str(fault), *NO_RIGHTS)
            return fail(
                str(fault),
                "the kernel refused a BPF file system, in which a node pins its programs and maps",
                "use a kernel with CONFIG_BPF_SYSCALL",
            )
    return ok("mounted and removed")


def _without_rights(fault: OSError) -> bool:
    """Whether it was not the file system that was refused, but mounting at all."""
    return fault.errno in (errno.EPERM, errno.EACCES) or fault.filename in (UNSHARE_MOUNTS, MAKE_PRIVATE)


@dataclass(frozen=True)
class Want:
    """Room for something: bytes below a folder that need not be there yet."""

    folder: Path
    size: int
    what: str


def wants(lab: Rendered) -> list[Want]:
    """What bringing `lab` up will take: builds that are not in the store yet, and its disks."""
    there, made_from = builds.locate(), {provider(lab).image}
    missing = [recipe for recipe in builds.needed(lab.provider, also=made_from) if recipe.name not in there]
    found = []
    if missing:
        building = max(recipe.space for recipe in missing)
        share = STORE_BYTES * len(missing) // (len(missing) + len(there))
        names = ", ".join(recipe.name for recipe in missing)
        found.append(Want(paths.cache(), building + share, f"building {names}"))
        if {recipe.name for recipe in missing} & {"kubernetes", "istio", "coredns", "etcd"}:
            found.append(Want(_go_cache(), GO_CACHES_BYTES, "Go's caches"))
    up = running(lab)
    if lab.provider == "vagrant":
        fresh = len(lab.nodes) - up
        room_ = MACHINE_SHARED_BYTES * bool(fresh) + MACHINE_BYTES * fresh
        found.append(Want(_machines(lab), room_, f"the disks of {len(lab.nodes)} machines"))
        return found
    size = RUNNING_NODE_BYTES * up + NODE_BYTES * (len(lab.nodes) - up)
    found.append(Want(paths.state(), size, f"the disks of {len(lab.nodes)} nodes"))
    return found


def room(wanted: Iterable[Want]) -> Seen:
    """Compare what is free on each file system with what is wanted on it."""
    by_device: dict[int, list[Want]] = {}
    for want in wanted:
        by_device.setdefault(nearest(want.folder).stat().st_dev, []).append(want)
    lines, short = [], []
    for group in by_device.values():
        place = nearest(group[0].folder)
        free = shutil.disk_usage(place).free
        needed = sum(want.size for want in group)
        purposes = "; ".join(f"{human(want.size)} for {want.what}" for want in group)
        lines.append(f"{human(free)} free at {place}, {human(needed)} needed")
        if free < needed:
            short.append(f"{place} lacks {human(needed - free)} ({purposes})")
    if short:
        return fail(
            "; ".join(lines),
            "; ".join(short),
            "free some space (`lab build --clean` removes artifacts of other releases), "
            "or set UNDERPASS_CACHE and UNDERPASS_STATE to folders on a larger disk",
        )
    return ok("; ".join(lines))


def _machines(lab: Rendered) -> Path:
    """Where the machines' own disks are: VirtualBox keeps them with its user."""
    return (
        Path("~/VirtualBox VMs").expanduser() if lab.hypervisor == "virtualbox" else Path("/var/lib/libvirt")
    )


def _go_cache() -> Path:
    return Path(
        os.environ.get("GOCACHE") or os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    )

"""Probes of the host itself: who we are, what the kernel hands out, whether the clock can be right."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab.doctor.finding import Probe, Seen, fail, ok, warn
from lab.doctor.present import running
from lab.doctor.scratch import check, in_thread, libc
from lab.lock import LOCK_FILE
from lab.render import Rendered

OPEN_FILES = 16384  # containerd and kubelet take as many as they get; fewer run short with many pods
OPEN_FILES_LEAST = 4096
#: inotify instances, as counted on a running lab: a node's systemd, containerd and kubelet; on top
#: a control plane; what pods may want.
INOTIFY_EACH = 13
INOTIFY_PLANE = 9
INOTIFY_PODS = 12
WATCHES_EACH = 4096  # files that a node watches, with room
KEYS_EACH = 120  # keyrings of a node: one or two for each container
KEY_BYTES_EACH = 20_000
#: No release of this project is older; a clock before it is wrong.
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)
CLOCK_SLACK = timedelta(hours=24)  # files from a checkout in another time zone's hands

_SYS_ADD_KEY, _SYS_KEYCTL = 248, 250  # on x86-64
_JOIN_SESSION = 1
_SESSION = -3


def probes(lab: Rendered) -> list[Probe]:
    nodes = len(lab.nodes) - running(lab)
    return [
        Probe("root", "Root", root, root=False),
        Probe("machine", "Linux on amd64", machine, root=False),
        Probe("inotify", "inotify instances and watches", lambda: inotify(nodes)),
        Probe("open-files", "Open files", open_files),
        Probe("kmsg", "/dev/kmsg", kmsg),
        Probe("keyrings", "Keyrings", lambda: keyrings(nodes)),
        Probe("clock", "The clock", clock, root=False),
    ]


def root() -> Seen:
    if os.geteuid() == 0:
        return ok("user id 0")
    return fail(
        f"user id {os.geteuid()}; probes that only root can make were left out",
        "the lab makes namespaces, mounts and BPF programs, which only root may",
        "run it by sudo: sudo .venv/bin/lab doctor",
    )


def machine() -> Seen:
    """Run on what the artifacts are built for; the release is evidence, never judged."""
    seen = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        return ok(seen)
    return fail(seen, "nodes and artifacts are built for Linux on amd64", "use an amd64 machine")


def inotify(nodes: int) -> Seen:
    """Make as many inotify instances as `nodes` more will, beside those in use now."""
    needed = INOTIFY_EACH * nodes + (INOTIFY_PLANE if nodes else 0)
    wanted = needed + INOTIFY_PODS
    setting = "fs.inotify.max_user_instances"
    handles: list[int] = []
    try:
        while len(handles) < wanted:
            handle = int(libc.inotify_init1(os.O_CLOEXEC))
            if handle < 0:
                break
            handles.append(handle)
        number = ctypes.get_errno()
    finally:
        for handle in handles:
            os.close(handle)
    limits = {name: _number(f"fs/inotify/{name}") for name in ("max_user_instances", "max_user_watches")}
    seen = f"{len(handles)} of {wanted} instances made; max_user_watches {limits['max_user_watches']}"
    if len(handles) < wanted:
        raised = max(1024, limits["max_user_instances"] + wanted)
        judge = fail if len(handles) < needed else warn
        return judge(
            f"{seen}; then {os.strerror(number)}",
            f"{setting} is {limits['max_user_instances']}, of which other programs or labs use much; "
            f"{'nodes' if len(handles) < needed else 'pods that watch files'} would fail",
            f"sysctl -w {setting}={raised}, and the same line in /etc/sysctl.d/underpass.conf to keep it",
        )
    if limits["max_user_watches"] < WATCHES_EACH * nodes:
        return fail(
            seen,
            f"{nodes} more nodes watch up to {WATCHES_EACH * nodes} files",
            "sysctl -w fs.inotify.max_user_watches=524288, and the same line in /etc/sysctl.d/underpass.conf",
        )
    return ok(seen)


def open_files() -> Seen:
    """The hard limit that nodes inherit, raised here for a moment if it is too low."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] >= OPEN_FILES or before[1] == resource.RLIM_INFINITY:
        return ok(f"{before[1]} for each process")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0], OPEN_FILES))
    except (OSError, ValueError) as fault:
        judge = fail if before[1] < OPEN_FILES_LEAST else warn
        return judge(
            f"{before[1]} for each process; raising it: {fault}",
            f"nodes inherit this limit, and run short of files with many pods under {OPEN_FILES}",
            f"raise the hard limit: ulimit -Hn {OPEN_FILES} as root, or nofile in /etc/security/limits.conf",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return ok(f"{before[1]} for each process, and it can be raised")


def kmsg() -> Seen:
    """Open the kernel's log as kubelet does."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError as fault:
        return fail(
            fault.strerror or str(fault),
            "kubelet reads /dev/kmsg and does not start without",
            "make the device: mknod -m 600 /dev/kmsg c 1 11; in a container, hand the host's in",
        )
    return ok("opens")


def keyrings(nodes: int) -> Seen:
    """Make a session keyring with a key in it, as the container runtime does for each container."""

    def make() -> None:
        check(libc.syscall(_SYS_KEYCTL, _JOIN_SESSION, None), "join a session keyring")
        key = libc.syscall(_SYS_ADD_KEY, b"user", b"underpass-doctor", b"x", ctypes.c_size_t(1), _SESSION)
        check(key, "add a key")

    refused = None
    try:
        in_thread(make)  # a session keyring is of one thread and ends with it
    except OSError as fault:
        refused = fault
    used, quota = _key_users(Path("/proc/key-users").read_text(encoding="ascii"), os.geteuid())
    seen = f"user {os.geteuid()} has {used[0]} of {quota[0]} keys, {used[1]} of {quota[1]} bytes"
    prefix = "kernel.keys.root_" if os.geteuid() == 0 else "kernel.keys."
    fix = (
        f"sysctl -w {prefix}maxkeys=1000000 {prefix}maxbytes=25000000, "
        "and the same in /etc/sysctl.d/underpass.conf to keep it"
    )
    if refused and refused.errno not in (errno.EDQUOT, errno.ENFILE):
        return fail(
            f"{seen}; {refused}",
            "the kernel refuses keyrings, of which each container gets one",
            "use a kernel with CONFIG_KEYS; in a sandbox, allow keyctl(2) and add_key(2)",
        )
    short = quota[0] - used[0] < KEYS_EACH * nodes or quota[1] - used[1] < KEY_BYTES_EACH * nodes
    if refused or short:
        return fail(f"{seen}{f'; {refused}' if refused else ''}", "containers will run out of keyrings", fix)
    return ok(seen)


def _key_users(text: str, user: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Keys and bytes that `user` has, and its quotas of both, from /proc/key-users."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        if int(number) == user:
            keys, size = (part.split("/") for part in rest.split()[2:4])
            return (int(keys[0]), int(size[0])), (int(keys[1]), int(size[1]))
    prefix = "root_" if user == 0 else ""
    return (0, 0), (_number(f"kernel/keys/{prefix}maxkeys"), _number(f"kernel/keys/{prefix}maxbytes"))


def clock() -> Seen:
    """The clock against this release and its files: certificates made in the past would not be valid."""
    now = datetime.now(UTC)
    least = max(RELEASED, datetime.fromtimestamp(LOCK_FILE.stat().st_mtime, UTC) - CLOCK_SLACK)
    seen = now.isoformat(timespec="seconds")
    if now < least:
        return fail(
            f"{seen}, before {least.isoformat(timespec='seconds')}",
            "the clock is behind this release: certificates and registries would be refused",
            "set the clock: timedatectl set-ntp true, or date --set",
        )
    if now > RELEASED + timedelta(days=20 * 365):
        return warn(seen, "the clock is some decades ahead", "set the clock: timedatectl set-ntp true")
    return ok(seen)


def _number(name: str) -> int:
    return int(Path("/proc/sys", name).read_text(encoding="ascii"))

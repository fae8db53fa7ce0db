"""One node as a running machine: systemd-nspawn, started detached, asked and stopped through the kernel.

Nothing remembers that a node runs. It runs while a systemd-nspawn with its machine name is in its
cgroup, so that neither a reused pid nor a lost note can mislead.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lab import emulation, ssh
from lab.errors import ExitCode, LabError
from lab.providers.base import STORE_ON_NODE
from lab.providers.nspawn import launch
from lab.providers.nspawn.cgroups import Cgroups
from lab.providers.nspawn.disks import ROOTFS, Disks
from lab.providers.nspawn.network import NAMESPACES
from lab.render import Rendered, RenderedNode
from lab.retry import until
from lab.run import run

PROGRAM = "systemd-nspawn"
CONSOLE_BYTES = 1024 * 1024
LAUNCH_SECONDS = 30.0
ANSWER_SECONDS = 20.0  # for one connection

#: The system calls that Kubernetes, BPF and Envoy make beyond nspawn's default.
SYSTEM_CALLS = "@keyring @privileged bpf perf_event_open @system-service @mount @module @raw-io"

#: nspawn's whole environment: nothing of the caller's, which may hold secrets, is inherited.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    # /proc/sys/net, of the node's own network namespace, can be written; see settings.py for the rest.
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
    # The lab's lock and the cgroup keep a node from being started twice; nspawn's own lock files
    # would stay behind after a power cut.
    "SYSTEMD_NSPAWN_LOCK": "no",
}


def argv(node: RenderedNode, root: Path, binds: Mapping[Path, str], store: Path) -> list[str]:
    """The nspawn command line of a node whose root is at `root`. `binds`: on the host -> in the node."""
    return [
        PROGRAM,
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        f"--machine={node.machine}",
        f"--hostname={node.name}",
        f"--directory={root}",
        f"--network-namespace-path={NAMESPACES / node.machine}",
        "--boot",
        "--console=read-only",
        "--capability=all",
        f"--system-call-filter={SYSTEM_CALLS}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--bind=/dev/kmsg",
        *(f"--bind={_escaped(path)}:{there}" for path, there in binds.items()),
        f"--bind-ro={_escaped(store)}:{STORE_ON_NODE}",
    ]


def _escaped(path: Path) -> str:
    """A path as nspawn's --bind wants it: a colon would end it."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:")


class Machine:
    """One node of a lab, running or not."""

    def __init__(self, lab: Rendered, node: RenderedNode, disks: Disks, cgroups: Cgroups) -> None:
        self.lab = lab
        self.node = node
        self._disks = disks
        self._cgroups = cgroups

    def pid(self) -> int | None:
        """The nspawn that runs the node; None while the node is off."""
        for pid in sorted(self._cgroups.processes()):
            if self._is_nspawn(pid) and not self._is_nspawn(_parent(pid)):
                return pid
        return None

    def _is_nspawn(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        machine = f"--machine={self.node.machine}".encode()
        return machine in words  # a zombie has no words

    def init_pid(self) -> int | None:
        """The node's own init, as the host numbers it; None until the node has one."""
        nspawn = self.pid()
        if nspawn is None:
            return None
        children = [pid for pid in self._cgroups.processes() if _parent(pid) == nspawn]
        return next((pid for pid in children if not self._is_nspawn(pid)), None)

    def launch(self, image: Path, store: Path) -> None:
        """Start the node on `image`. Cgroups, network and disk are ready; returns before it has booted."""
        name = self.node.name
        disks = self._disks
        disks.make_mount_points(name)
        console = disks.console(name)
        if console.exists():
            console.replace(_older(console))
        binds = {**disks.binds(name), disks.bpf(name): "/sys/fs/bpf"}
        plan = {
            "node": name,
            "folder": str(disks.top),
            "image": str(image / ROOTFS),
            "console": str(console),
            "console_bytes": CONSOLE_BYTES,
            "cgroups": [str(folder) for folder in self._cgroups.folders()],
            "beside": [str(folder) for folder in self._cgroups.make_beside()],
            "argv": argv(self.node, disks.root(name), binds, store),
            "env": ENVIRONMENT,
        }
        with self._launching() as lock:
            run(
                [sys.executable, "-I", "-S", launch.__file__],
                stdin=json.dumps(plan),
                timeout=LAUNCH_SECONDS * emulation.slowness(),
                hint="`lab doctor` probes overlayfs, namespaces and cgroups",
                code=ExitCode.NODE,
                inherit=(lock,),
            )

    def await_launch(self) -> None:
        """Wait until no `launch` of the node is at work.

        A `lab` that is killed leaves its own to go on: that would put a second node into the cgroups that
        the next one makes.
        """
        if self._disks.launch_lock(self.node.name).exists():
            with self._launching():
                pass

    @contextmanager
    def _launching(self) -> Iterator[int]:
        """The descriptor of a lock: held while it is open here, or in a program that inherits it."""
        lock = os.open(self._disks.launch_lock(self.node.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not until(lambda: _taken(lock), LAUNCH_SECONDS * emulation.slowness()):
                raise LabError(
                    f"an earlier start of {self.node.name} does not come to an end",
                    hint="`lab doctor` probes overlayfs, namespaces and cgroups, which it may wait for",
                    code=ExitCode.NODE,
                )
            yield lock
        finally:
            os.close(lock)

    def power_off(self, seconds: float) -> bool:
        """Ask the node to shut down in order; whether it was off within `seconds`."""
        pid = self.pid()
        if pid is None:
            return True
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            if self.pid() != pid:
                return True
            signal.pidfd_send_signal(handle, signal.SIGTERM)  # nspawn passes SIGRTMIN+3 on to init
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(handle)

    def drain_console(self) -> None:
        """Let the console's copier, which outlives the node by a moment, write its last words down."""
        until(lambda: not self._cgroups.processes(), 2)

    def answers(self) -> bool:
        """Whether ssh with the lab's keys, and the node's own host key, gets through now."""
        return ssh.answers_afresh(self.lab, self.node, ANSWER_SECONDS * emulation.slowness())

    def wait(self, seconds: float) -> bool:
        """Wait until the node answers or has died; whether it answers."""
        answered = False

        def settled() -> bool:
            nonlocal answered
            answered = self.answers()
            return answered or self.pid() is None

        until(settled, seconds)
        return answered

    def console(self, lines: int, *, this_boot: bool = False) -> str:
        """The last lines of the console, without control characters."""
        file = self._disks.console(self.node.name)
        files = [file] if this_boot else [_older(file), file]
        text = "".join(path.read_text("utf-8", errors="replace") for path in files if path.exists())
        return "\n".join(ssh.clean(text).splitlines()[-lines:]) if lines > 0 else ""


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _older(console: Path) -> Path:
    return console.with_name(console.name + ".old")


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(")")[2].split()[1])

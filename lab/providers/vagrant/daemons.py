"""libvirt's daemons on hosts where nothing starts them, as in a container without systemd.

Where a libvirtd answers, it is used as it is, and left as it was. Else ours is started, and stopped
with the last lab that needs it. Ours reads a configuration of its own, mounted over the host's file
in its own mount namespace: QEMU as root (a /dev/kvm that only root can open would else make libvirtd
look for QEMU's abilities again at each start, more than a minute), and no control groups (their
manager would be systemd).
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import ExitCode, LabError, die
from lab.run import run

FOLDER = Path("/run/underpass/libvirt")
CONFIGURATION = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
security_driver = "none"
"""
START_SECONDS = 30.0

_START = """
mount --bind "$1" /etc/libvirt/qemu.conf
mkdir -p /run/libvirt
virtlogd --daemon --pid-file "$2/virtlogd.pid"
exec libvirtd --daemon --pid-file "$2/libvirtd.pid"
"""


@contextmanager
def alone() -> Iterator[None]:
    """One at a time: daemons are started and stopped for all labs."""
    FOLDER.parent.mkdir(mode=0o700, exist_ok=True)
    with (FOLDER.parent / "libvirt.lock").open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def answers() -> bool:
    """Whether a libvirtd can be spoken to."""
    try:
        return run(["virsh", "-q", "-c", "qemu:///system", "uri"], ok=range(256), timeout=60).status == 0
    except LabError:
        return False


def ensure() -> int:
    """Start the daemons where none answers; 1 if they were started."""
    with alone():
        if answers():
            return 0
        _stop()
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        configuration = FOLDER / "qemu.conf"
        configuration.write_text(CONFIGURATION, encoding="utf-8")
        command = ["unshare", "--mount", "--propagation=slave", "--", "sh", "-e", "-c", _START, "libvirt"]
        run([*command, configuration, FOLDER], hint="`make setup VMS=1` installs libvirt", code=ExitCode.HOST)
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if time.monotonic() > deadline:
                die(
                    f"libvirtd does not answer {START_SECONDS:g} s after its start",
                    hint="its log is in /var/log/libvirt or the journal",
                    code=ExitCode.HOST,
                )
            time.sleep(0.2)
        return 1


def stop_if_idle() -> int:
    """Stop the daemons if they are ours and no virtual machine of anybody's is left; 1 if they were."""
    with alone():
        if not (FOLDER / "libvirtd.pid").exists():
            return 0
        if answers():
            listed = run(["virsh", "-q", "-c", "qemu:///system", "list", "--all", "--name"], timeout=60)
            if listed.stdout.split():
                return 0
        return _stop()


def _stop() -> int:
    ended = sum(_end(FOLDER / f"{name}.pid", name) for name in ("libvirtd", "virtlogd"))
    if FOLDER.is_dir():
        for file in FOLDER.iterdir():
            file.unlink()
        FOLDER.rmdir()
    return int(bool(ended))


def _end(file: Path, program: str) -> int:
    """End the process that `file` names, if it still is that program."""
    try:
        pid = int(file.read_text(encoding="ascii"))
        if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() != program:
            return 0
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return 0
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.close(handle)
    return 1

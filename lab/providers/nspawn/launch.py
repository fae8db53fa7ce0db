"""A program of its own that starts one node and leaves it running: `python -I -S launch.py < plan`.

The plan (JSON, made by machine.py) comes on stdin; it ends when systemd-nspawn has been started.
Until then it and its children hold the lock that it inherits: the node is being launched.
It is a program, and imports nothing of ours, because it enters a mount namespace and forks: neither
may happen in the threads of `lab`.

The node's root is mounted in this program's mount namespace alone. So nothing of it is seen on the
host, and it is gone with the last process of the node, however that ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19

RUN_NSPAWN = Path("/run/systemd/nspawn")

#: Copies its stdin to file $1 for as long as it comes, and keeps the last $2 to 2 * $2 bytes of it:
#: a node that floods its console must not fill the disk.
KEEP_TAIL = """
while stdbuf -o0 head -c "$2" > "$1" && [ "$(stat -c %s "$1")" -ge "$2" ]; do mv -f "$1" "$1.old"; done
"""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    plan = json.load(sys.stdin)
    check(libc.unshare(CLONE_NEWNS), "unshare the mount namespace")
    mount("none", "/", "none", MS_SLAVE | MS_REC)
    # Relative paths: overlayfs gives commas and colons in its options a meaning.
    os.chdir(plan["folder"])
    name = plan["node"]
    mount(plan["image"], f"run/{name}/lower", "none", MS_BIND)
    mount("none", f"run/{name}/lower", "none", MS_BIND | MS_REMOUNT | MS_RDONLY)
    overlay = f"lowerdir=run/{name}/lower,upperdir=disks/{name}/upper,workdir=disks/{name}/work"
    # The features that would tie the upper layer to this very lower one are off, so that a node
    # may be started on a rebuilt image (kernel, filesystems/overlayfs: "changes to underlying").
    features = "redirect_dir=off,metacopy=off,index=off,xino=off"
    mount("overlay", f"run/{name}/root", "overlay", 0, f"{overlay},{features}")
    mount("bpf", f"run/{name}/bpf", "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700")
    # What nspawn keeps per machine for machinectl, it would leave on the host when it is killed.
    RUN_NSPAWN.mkdir(parents=True, exist_ok=True)
    mount("tmpfs", str(RUN_NSPAWN), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    nothing = os.open(os.devnull, os.O_RDWR)
    reader, writer = os.pipe()
    copier = ["sh", "-c", KEEP_TAIL, "console", plan["console"], str(plan["console_bytes"])]
    spawn(copier, plan, plan["beside"], reader, nothing)
    spawn(plan["argv"], plan, plan["cgroups"], nothing, writer)


def spawn(argv: list[str], plan: dict[str, Any], cgroups: list[str], source: int, sink: int) -> None:
    """Start a program in `cgroups` and in a session of its own."""

    def enter() -> None:
        for folder in cgroups:
            Path(folder, "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    # Nobody waits for it here: this program ends, and init takes its children over. It has one
    # thread, so that preexec_fn is safe.
    subprocess.Popen(
        argv,
        stdin=source,
        stdout=sink,
        stderr=sink,
        env=plan["env"],
        start_new_session=True,
        preexec_fn=enter,  # noqa: PLW1509
    )


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount; a fault ends the program with one line that says what was refused."""
    status = libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None
    )
    check(status, f"mount {kind} {source} at {target}")


def check(status: int, what: str) -> None:
    if status:
        sys.exit(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()

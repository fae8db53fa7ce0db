"""What nodes that share the host's kernel must not take for their own.

Kernel settings: a node writes what is its own (/proc/sys/net, of its network namespace); nspawn
shows it the rest of /proc/sys read only. kubelet insists on certain values there and sets them where
they differ, on a node of this kind for the whole host (`panic_on_oops`!). So the node shows kubelet
the values that it wants to see, by read-only files mounted over them, and the host keeps its own.

The kernel's log: kubelet reads it for out-of-memory kills. In a node's journal it would be the
host's, and every other node's, all over again at each boot.
"""

from __future__ import annotations

#: What kubelet insists on (Kubernetes, pkg/kubelet/cm: setupKernelTunables).
WANTED = {
    "kernel/keys/root_maxbytes": "25000000",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
}

_FOLDER = "usr/lib/underpass/settings"
_PROGRAM = "usr/lib/underpass/show-settings"
_UNIT = "underpass-settings.service"

_JOURNAL = """# The kernel's log is the host's and every other node's; `dmesg` on the host shows it.
[Journal]
ReadKMsg=no
"""

_SCRIPT = f"""#!/bin/sh
# Show Kubernetes the kernel settings that it insists on; the host's own stay as they are.
set -e
cd /{_FOLDER}
find . -type f | while read -r file; do
    [ ! -e "/proc/sys/$file" ] || mount -o bind,ro "$file" "/proc/sys/$file"
done
"""

_SERVICE = f"""[Unit]
Description=Show Kubernetes the kernel settings that it insists on
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/{_PROGRAM}
"""


def files() -> dict[str, tuple[bytes, int]]:
    """Files for the node's disk that do this: path -> content and mode."""
    units = "etc/systemd/system"
    return {
        **{f"{_FOLDER}/{name}": (f"{value}\n".encode(), 0o444) for name, value in WANTED.items()},
        _PROGRAM: (_SCRIPT.encode(), 0o755),
        f"{units}/{_UNIT}": (_SERVICE.encode(), 0o644),
        "etc/systemd/journald.conf.d/50-shared-kernel.conf": (_JOURNAL.encode(), 0o644),
    }


def links() -> dict[str, str]:
    """Symbolic links for the node's disk: path -> where it leads."""
    return {f"etc/systemd/system/sysinit.target.wants/{_UNIT}": f"../{_UNIT}"}

"""What makes a node this node: its name, ids and keys, laid into its disk while it is off.

The image is the same for all and holds none of this. Provider's for good, written at each start:
host name, ssh host key, root's authorized keys. Only begun here and then the node's
own: /etc/hosts and the machine id.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from lab.errors import ExitCode, die
from lab.providers.nspawn import settings
from lab.providers.nspawn.layer import Layer
from lab.render import Rendered, RenderedNode

HOST_KEY = "ssh_host_ed25519_key"


def hosts_file(lab: Rendered) -> str:
    """/etc/hosts of a node: itself and its fellows."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    return "\n".join(lines + [f"{node.address} {node.name}" for node in lab.nodes]) + "\n"


def write(lab: Rendered, node: RenderedNode, rootfs: Path, upper: Path) -> int:
    """Lay the node's identity into `upper`, the writable layer over `rootfs`; counts files changed."""
    keys = lab.folder / "keys"
    host = keys / "hosts" / node.name
    try:
        always = {
            "etc/hostname": (f"{node.name}\n".encode(), 0o644),
            f"etc/ssh/{HOST_KEY}": ((host / HOST_KEY).read_bytes(), 0o600),
            f"etc/ssh/{HOST_KEY}.pub": ((host / f"{HOST_KEY}.pub").read_bytes(), 0o644),
            "root/.ssh/authorized_keys": ((keys / "ssh.pub").read_bytes(), 0o600),
        }
    except FileNotFoundError as missing:
        die(f"{missing.filename} is missing", hint="`lab up` makes the lab's keys", code=ExitCode.NODE)
    once = {
        "etc/machine-id": (f"{uuid.uuid4().hex}\n".encode(), 0o444),
        "etc/hosts": (hosts_file(lab).encode(), 0o644),
    }
    layer = Layer(rootfs, upper)
    begun = {path: file for path, file in once.items() if not layer.holds(path)}
    files = always | settings.files() | begun
    changed = sum(layer.file(path, *file) for path, file in files.items())
    return changed + sum(layer.link(path, to) for path, to in settings.links().items())

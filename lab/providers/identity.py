"""What makes a node this node, whoever makes it: its name, its keys, the names of its fellows."""

from __future__ import annotations

from lab.errors import ExitCode, die
from lab.render import Rendered, RenderedNode

HOST_KEY = "ssh_host_ed25519_key"


def hosts_file(lab: Rendered) -> str:
    """/etc/hosts of a node: itself and its fellows."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    return "\n".join(lines + [f"{node.address} {node.name}" for node in lab.nodes]) + "\n"


def always(lab: Rendered, node: RenderedNode) -> dict[str, tuple[bytes, int]]:
    """Files that stay the provider's: path below the node's root -> content and mode."""
    keys = lab.folder / "keys"
    host = keys / "hosts" / node.name
    try:
        return {
            "etc/hostname": (f"{node.name}\n".encode(), 0o644),
            f"etc/ssh/{HOST_KEY}": ((host / HOST_KEY).read_bytes(), 0o600),
            f"etc/ssh/{HOST_KEY}.pub": ((host / f"{HOST_KEY}.pub").read_bytes(), 0o644),
            "root/.ssh/authorized_keys": ((keys / "ssh.pub").read_bytes(), 0o600),
        }
    except FileNotFoundError as missing:
        die(f"{missing.filename} is missing", hint="`lab up` makes the lab's keys", code=ExitCode.NODE)

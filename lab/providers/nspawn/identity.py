"""What makes a node this node: its name, ids and keys, laid into its disk while it is off.

The image is the same for all and holds none of this. Provider's for good, written at each start:
host name, ssh host key, root's authorized keys. Only begun here and then the node's
own: /etc/hosts and the machine id.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from lab.providers.identity import always, hosts_file
from lab.providers.nspawn import settings
from lab.providers.nspawn.layer import Layer
from lab.render import Rendered, RenderedNode


def write(lab: Rendered, node: RenderedNode, rootfs: Path, upper: Path) -> int:
    """Lay the node's identity into `upper`, the writable layer over `rootfs`; counts files changed."""
    once = {
        "etc/machine-id": (f"{uuid.uuid4().hex}\n".encode(), 0o444),
        "etc/hosts": (hosts_file(lab).encode(), 0o644),
    }
    layer = Layer(rootfs, upper)
    begun = {path: file for path, file in once.items() if not layer.holds(path)}
    files = always(lab, node) | settings.files() | begun
    changed = sum(layer.file(path, *file) for path, file in files.items())
    return changed + sum(layer.link(path, to) for path, to in settings.links().items())

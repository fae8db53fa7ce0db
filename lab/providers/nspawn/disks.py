"""The nodes' disks: a thin writable layer each over one shared image, and what is kept beside it.

Below the lab's folder, all of it this provider's:

    nodes/disks/<node>/upper work        the node's changes to the image (overlayfs)
    nodes/disks/<node>/data/<name>       directories that need a real file system, bound into the node
    nodes/disks/<node>/image.json        the image that the changes are changes to
    nodes/run/<node>/                    mount points, the console's log, the lock of a launch
    nodes/made.json                      the nodes that were made, as they were rendered, and the store
    nodes/snapshots/<name>/disks/...     copies of `disks`, with `snapshot.json`
    nodes/.stage-*                       half-made copies; a kill leaves them, the next call removes them
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, die
from lab.files import write_atomic
from lab.render import Rendered, RenderedNode
from lab.run import run

#: What overlayfs cannot carry (containerd mounts overlays of its own in it) or should not (etcd
#: waits for the disk at each write): directory on the disk -> path in the node.
DATA = {
    "containerd": "/var/lib/containerd",
    "kubelet": "/var/lib/kubelet",
    "etcd": "/var/lib/etcd",
}

ROOTFS = "rootfs"


@dataclass(frozen=True)
class Made:
    """What `create` made: nodes by name as they were rendered then, and the folder of artifacts."""

    nodes: dict[str, RenderedNode]
    store: Path


class Disks:
    """The disks of one lab's nodes."""

    def __init__(self, lab: Rendered) -> None:
        self.lab = lab
        self.top = lab.folder / "nodes"

    def disk(self, node: str) -> Path:
        return self.top / "disks" / node

    def upper(self, node: str) -> Path:
        return self.disk(node) / "upper"

    def run(self, node: str) -> Path:
        return self.top / "run" / node

    def root(self, node: str) -> Path:
        """Where the node's root is mounted, in the node's own mount namespace."""
        return self.run(node) / "root"

    def bpf(self, node: str) -> Path:
        """Where the node's bpffs is mounted, in the node's own mount namespace."""
        return self.run(node) / "bpf"

    def console(self, node: str) -> Path:
        return self.run(node) / "console.log"

    def binds(self, node: str) -> dict[Path, str]:
        """Directories on the host that the node sees: path on the host -> path in the node."""
        return {self.disk(node) / "data" / name: path for name, path in DATA.items()}

    def there(self, node: str) -> bool:
        """Whether the node has a disk."""
        return (self.disk(node) / "image.json").is_file()

    def make(self, node: str, image: Path) -> int:
        """Make the node's disk over `image`, or put the one it has onto `image`; 1 if anything changed."""
        if not (image / ROOTFS).is_dir():
            die(
                f"{image} is not a node image: it has no {ROOTFS}",
                hint="`lab build` builds it",
                code=ExitCode.ARTIFACT,
            )
        # The upper directory's mode is that of the node's `/`.
        for folder, mode in (
            (self.upper(node), 0o755),
            (self.disk(node) / "work", 0o700),
            *((path, 0o755) for path in self.binds(node)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        return int(write_atomic(self.disk(node) / "image.json", json.dumps({"image": str(image)})))

    def make_mount_points(self, node: str) -> None:
        for name in ("lower", "root", "bpf"):
            (self.run(node) / name).mkdir(parents=True, exist_ok=True)

    def launch_lock(self, node: str) -> Path:
        """The file whose lock is held while the node is launched."""
        return self.run(node) / "launch.lock"

    def image(self, node: str) -> Path:
        """The image that the node's disk is made over."""
        image = Path(json.loads((self.disk(node) / "image.json").read_text(encoding="utf-8"))["image"])
        if not (image / ROOTFS).is_dir():
            die(
                f"the image that {node} runs on is no longer in the store: {image.name}",
                hint="`lab up` builds the image and puts the node's disk onto it; its data stays",
                code=ExitCode.ARTIFACT,
            )
        return image

    def remove(self, node: str) -> int:
        """Remove the node's disk and mount points; 1 if there were any."""
        folders = [folder for folder in (self.disk(node), self.run(node)) if folder.exists()]
        for folder in folders:
            remove_tree(folder)
        return int(bool(folders))

    def remove_all(self) -> int:
        """Remove all disks and snapshots; 1 if there was anything."""
        if not self.top.exists():
            return 0
        remove_tree(self.top)
        return 1

    def made(self) -> Made | None:
        """What `create` made last; None if it never ran."""
        try:
            data = json.loads((self.top / "made.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Made({name: _node(fields) for name, fields in data["nodes"].items()}, Path(data["store"]))

    def remember(self, made: Made) -> int:
        """Write down what was made; 1 if that is news."""
        self.top.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = {
            "store": str(made.store),
            "nodes": {name: asdict(node) for name, node in sorted(made.nodes.items())},
        }
        return int(write_atomic(self.top / "made.json", json.dumps(data, indent=2) + "\n"))


def _node(fields: dict[str, Any]) -> RenderedNode:
    return RenderedNode(**{**fields, "roles": tuple(fields["roles"])})


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, on its own file system only."""
    run(["rm", "-rf", "--one-file-system", path], code=ExitCode.NODE)

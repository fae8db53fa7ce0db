"""Writing into a node's disk while the node is off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.errors import ExitCode, die
from lab.files import write_atomic

#: Modes of directories that an image may lack; of others 0755.
_MODES = {"root": 0o700, ".ssh": 0o700}


class Layer:
    """The writable layer `upper` over the image `rootfs`. Paths are relative to the node's root.

    The node's root user had the layer before: nothing in it may lead a write to elsewhere on the host.
    """

    def __init__(self, rootfs: Path, upper: Path) -> None:
        self._rootfs = rootfs
        self._upper = upper

    def holds(self, path: str) -> bool:
        """Whether the layer itself has the plain file `path`."""
        target = self._upper / path
        return target.is_file() and not target.is_symlink()

    def file(self, path: str, content: bytes, mode: int) -> int:
        """Make `path` a file that holds `content`; 1 if it was not."""
        target = self._place(path)
        if not self.holds(path):
            target.unlink(missing_ok=True)  # a link, or overlayfs's mark of a removed file
        return int(write_atomic(target, content, mode))

    def link(self, path: str, to: str) -> int:
        """Make `path` a symbolic link; 1 if it was not."""
        target = self._place(path)
        if target.is_symlink() and str(target.readlink()) == to:
            return 0
        target.unlink(missing_ok=True)
        target.symlink_to(to)
        return 1

    def _place(self, path: str) -> Path:
        """`path` in the layer, its directories made with the owner and mode that they have in the image."""
        folders = Path(path).parent.parts
        here = self._upper
        for depth, part in enumerate(folders, start=1):
            here = here / part
            if here.is_dir() and not here.is_symlink():
                continue
            if here.is_symlink() or here.exists():
                die(
                    f"{here} is not a directory",
                    hint="the node was changed beyond repair: `lab down` and `lab up` make it anew",
                    code=ExitCode.NODE,
                )
            here.mkdir()
            model = self._rootfs.joinpath(*folders[:depth])
            if model.is_dir() and not model.is_symlink():
                shutil.copystat(model, here)
                os.chown(here, model.stat().st_uid, model.stat().st_gid)
            else:
                here.chmod(_MODES.get(part, 0o755))
        return here / Path(path).name

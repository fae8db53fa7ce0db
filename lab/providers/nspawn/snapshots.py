"""Snapshots: whole copies of the disks of a stopped lab, kept beside them.

A copy is made under a name that nobody reads and then takes its place in one step, so that a kill at
any moment leaves the old disks or the new ones, a whole snapshot or none.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path

from lab.errors import ExitCode, die
from lab.files import write_atomic
from lab.providers.base import known_snapshot, new_snapshot
from lab.providers.nspawn.disks import Disks, remove_tree
from lab.run import run

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Snapshots:
    """The snapshots of one lab."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._folder = disks.top / "snapshots"

    def names(self) -> list[str]:
        """Oldest first."""
        saved = {
            file.parent.name: json.loads(file.read_text(encoding="utf-8"))["saved"]
            for file in self._folder.glob("*/snapshot.json")
        }
        return sorted(saved, key=lambda name: (saved[name], name))

    def save(self, name: str) -> int:
        """Copy the disks under a new name."""
        new_snapshot(name, self.names())
        if not (self._disks.top / "disks").is_dir():
            die("there are no disks to save", hint="`lab up` makes the nodes", code=ExitCode.NOT_THERE)
        stage = self._stage("save")
        _copy(self._disks.top / "disks", stage / "disks")
        write_atomic(stage / "snapshot.json", json.dumps({"saved": time.time_ns()}))
        self._folder.mkdir(exist_ok=True, mode=0o700)
        stage.rename(self._folder / name)
        return 1

    def restore(self, name: str) -> int:
        """Put copies of the saved disks in the place of those that are there."""
        known_snapshot(name, self.names())
        self._same_nodes(name)
        stage = self._stage("restore")
        _copy(self._folder / name / "disks", stage / "disks")
        here = self._disks.top / "disks"
        _exchange(stage / "disks", here)
        remove_tree(stage)
        return 1

    def delete(self, name: str) -> int:
        """Forget a snapshot."""
        known_snapshot(name, self.names())
        stage = self._stage("delete")
        (self._folder / name).rename(stage / name)
        remove_tree(stage)
        return 1

    def _same_nodes(self, name: str) -> None:
        """Refuse to bring back other nodes than the lab has now."""
        saved, now = (
            {path.name for path in folder.iterdir()}
            for folder in (self._folder / name / "disks", self._disks.top / "disks")
        )
        if saved != now:
            die(
                f"snapshot {name} is of other nodes: {', '.join(sorted(saved))}",
                hint=f"the lab has {', '.join(sorted(now))}; give the lab file those nodes, then `lab up`",
                code=ExitCode.NODE,
            )

    def _stage(self, what: str) -> Path:
        """An empty directory to work in, on the disks' file system; what a kill left is removed."""
        for old in self._disks.top.glob(".stage-*"):
            remove_tree(old)
        stage = self._disks.top / f".stage-{what}"
        stage.mkdir(mode=0o700)
        return stage


def _copy(source: Path, target: Path) -> None:
    # -a keeps overlayfs's marks: whiteouts are device nodes, opaque directories trusted.* attributes.
    run(
        ["cp", "-a", "--reflink=auto", source, target],
        code=ExitCode.NODE,
        hint="a snapshot needs as much room as the nodes' disks: `du -sh` the lab's folder, `df`",
    )


def _exchange(one: Path, other: Path) -> None:
    """Let two directories change places, in one step (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    status = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if status:
        number = ctypes.get_errno()
        die(f"cannot exchange {one} and {other}: {os.strerror(number)}", code=ExitCode.NODE)

# SPDX-License-Identifier: Apache-2.0
"""A set of files, links and directories on a node: compared, mended, remembered, removed.

Part of `underpass_part`; runs on the node. Nothing outside Python's own library.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import zlib
from pathlib import Path
from typing import Any

#: What half-written files are called; the next run overwrites them.
PART = ".underpass-part"
DIFF_LIMIT = 64 * 1024  # bytes

Entry = dict[str, Any]


class Fault(Exception):
    """Something on the node stands in the way; the text says what."""


class Records:
    """What a node remembers of its parts: for each a file `NAME.json` and the files that it replaced.

    A record has `paths` (of the part's tree) and `units`. It lists at least what is there: more is
    added to it before anything is made, and left out of it after everything is removed.
    """

    def __init__(self, root: str | Path = "/", check: bool = False) -> None:
        self.folder = Path(root) / "var/lib/underpass/parts"
        self.check = check

    def read(self, name: str) -> dict[str, list[str]]:
        """The record of a part; empty if there is none, or it cannot be read."""
        try:
            record = json.loads(self._file(name).read_bytes())
            return {"paths": list(record["paths"]), "units": list(record["units"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {"paths": [], "units": []}

    def write(self, name: str, paths: set[str], units: list[str]) -> None:
        record = {"paths": sorted(paths), "units": units}
        if self.check or self.read(name) == record:
            return
        here = self._file(name)
        part = _part(here)
        part.write_text(json.dumps(record), encoding="utf-8")
        part.replace(here)

    def forget(self, name: str) -> None:
        if not self.check:
            self._file(name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / f"{name}.originals", ignore_errors=True)

    def paths_of_others(self, name: str) -> set[str]:
        """The paths of all parts but `name`."""
        names = {file.stem for file in self.folder.glob("[!.]*.json")} - {name}
        return {path for other in names for path in self.read(other)["paths"]}

    def original(self, name: str, path: str) -> Path:
        """Where the file is kept that was at `path` before the part came."""
        return self.folder / f"{name}.originals" / path.lstrip("/")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


class Tree:
    """The paths of one part, below `root`. With `check`, only finds out what would be changed."""

    def __init__(self, name: str, records: Records, root: str = "/", check: bool = False) -> None:
        self.name = name
        self.records = records
        self.root = Path(root)
        self.check = check
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []

    def present(self, entries: list[Entry], before: set[str]) -> None:
        """Make every entry be there, then remove what the part had `before` and no longer has."""
        wanted = {entry["path"] for entry in entries}
        place = {"directory": self._directory, "link": self._link, "file": self._file}
        for entry in entries:
            place[entry["kind"]](entry)
        others = self.records.paths_of_others(self.name)
        for path in sorted(before - wanted - others, reverse=True):
            self._remove(path)
        for entry in entries:
            if entry.get("purge"):
                self._purge(entry["path"], {*wanted, *others})

    def keep_originals(self, paths: set[str]) -> None:
        """Keep what is at `paths`, before it is replaced for the first time."""
        for path in paths:
            here, original = self._at(path), self.records.original(self.name, path)
            if here.is_file() and not here.is_symlink() and not original.exists() and not self.check:
                original.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                shutil.copy2(here, original)

    def absent(self, before: set[str]) -> None:
        """Remove what the part had `before`, innermost first; what it replaced comes back."""
        for path in sorted(before - self.records.paths_of_others(self.name), reverse=True):
            self._remove(path)

    def _at(self, path: str) -> Path:
        if not path.startswith("/") or ".." in path.split("/"):
            raise Fault(f"{path} is not an absolute path")
        return self.root / path.lstrip("/")

    def _note(self, path: str, before: str, after: str) -> None:
        """Count a change and keep what --diff shows of it."""
        self.changed.append(path)
        self.diffs.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def _directory(self, entry: Entry) -> None:
        path, mode = entry["path"], int(entry["mode"], 8)
        here = self._at(path)
        status = _status(here)
        if status is None:
            self._note(path, "", f"directory {mode:04o}\n")
            if not self.check:
                here.mkdir(parents=True)
                here.chmod(mode)
        elif not stat.S_ISDIR(status.st_mode):
            raise Fault(f"{path} is in the way: a directory is to be there")
        else:
            self._attributes(path, here, status, mode)

    def _link(self, entry: Entry) -> None:
        path, target = entry["path"], entry["target"]
        here = self._at(path)
        status = _status(here)
        before = str(here.readlink()) if status and stat.S_ISLNK(status.st_mode) else None
        if before == target:
            return
        _refuse_directory(path, status)
        self._note(path, f"link to {before}\n" if before else "", f"link to {target}\n")
        if self.check:
            return
        part = _part(here)
        part.symlink_to(target)
        part.replace(here)

    def _file(self, entry: Entry) -> None:
        path, mode = entry["path"], int(entry["mode"], 8)
        data = base64.b64decode(entry["data"])
        here = self._at(path)
        status = _status(here)
        _refuse_directory(path, status)
        regular = status is not None and stat.S_ISREG(status.st_mode)
        before = here.read_bytes() if regular else None
        if status is not None and before == data:
            self._attributes(path, here, status, mode)
            return
        if entry.get("secret"):
            self._note(path, "(not shown)\n" if regular else "", "(new, not shown)\n")
        else:
            self._note(path, _shown(before), _shown(data))
        if self.check:
            return
        part = _part(here)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        part.replace(here)

    def _attributes(self, path: str, here: Path, status: os.stat_result, mode: int) -> None:
        """Mend mode and owner of something that is otherwise right."""
        user, group = os.geteuid(), os.getegid()
        there = stat.S_IMODE(status.st_mode)
        if there == mode and (status.st_uid, status.st_gid) == (user, group):
            return
        was = f"mode {there:04o} owner {status.st_uid}:{status.st_gid}\n"
        self._note(path, was, f"mode {mode:04o} owner {user}:{group}\n")
        if not self.check:
            os.chown(here, user, group)
            here.chmod(mode)

    def _remove(self, path: str) -> None:
        here = self._at(path)
        status = _status(here)
        if status is None:
            return
        original = self.records.original(self.name, path)
        if original.exists():
            self._note(path, "there\n", "as it was\n")
            if not self.check:
                part = _part(here)
                shutil.copy2(original, part)
                part.replace(here)
                original.unlink()
        elif not stat.S_ISDIR(status.st_mode):
            self._note(path, "there\n", "")
            if not self.check:
                here.unlink()
        elif not any(here.iterdir()):  # what others have put into a directory is theirs
            self._note(path, "directory\n", "")
            if not self.check:
                here.rmdir()

    def _purge(self, path: str, known: set[str]) -> None:
        """Remove what nobody has put under `path`."""
        here = self._at(path)
        for child in sorted(here.iterdir()) if here.is_dir() else []:
            name = f"{path}/{child.name}"
            if name in known or any(other.startswith(f"{name}/") for other in known):
                continue
            self._note(name, "there, and not known\n", "")
            if self.check:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()


def _status(here: Path) -> os.stat_result | None:
    try:
        return here.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _refuse_directory(path: str, status: os.stat_result | None) -> None:
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise Fault(f"{path} is a directory, and something else is to be there")


def _shown(data: bytes | None) -> str:
    if data is None:
        return ""
    if len(data) > DIFF_LIMIT:
        return f"({len(data)} bytes)\n"
    return data.decode("utf-8", errors="replace")


def _part(here: Path) -> Path:
    """Where the new `here` is made, in its own directory, which is made if it is not there."""
    here.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = here.with_name(f".{here.name}{PART}")
    part.unlink(missing_ok=True)
    return part


def unpack(payload: str) -> list[Entry]:
    """The entries in a payload of the action."""
    return list(json.loads(zlib.decompress(base64.b64decode(payload)))) if payload else []

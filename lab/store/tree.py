"""What is in a folder, file by file: taken down once after a build, compared ever after.

A listing holds everything that makes a root file system what it is (type, owner, mode, extended
attributes, device numbers, link targets, contents), so that it is also the recipe by which a bundle
is put back (`lab.store.bundle`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: One file system object, as JSON data. Always `type` (file, dir, link, char, block, fifo), `mode`
#: (permission bits), `uid`, `gid`. A file: `size` in bytes, `mtime_ns`, `sha256`. A link: `target`.
#: A device: `device` [major, minor]. Extended attributes, if any: `xattrs` {name: hex}.
Entry = dict[str, Any]

#: Path relative to the folder ("." is the folder itself) -> entry. Parents come before children.
Listing = dict[str, Entry]

_TYPES: dict[str, Callable[[int], bool]] = {
    "file": stat.S_ISREG,
    "dir": stat.S_ISDIR,
    "link": stat.S_ISLNK,
    "char": stat.S_ISCHR,
    "block": stat.S_ISBLK,
    "fifo": stat.S_ISFIFO,
}
#: Sockets and the like are not worth keeping; a listing leaves them out.
_MTIME = "mtime_ns"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Difference:
    """One thing in a folder that is not as its listing says."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def scan(folder: Path) -> Listing:
    """List and hash all that is in `folder`."""
    return {path: _entry(folder / path, found) for path, found in _walk(folder)}


def digest(listing: Listing) -> str:
    """One sha256 over a listing. Modification times of files do not count; all else does."""
    whole = hashlib.sha256()
    for path in sorted(listing):
        entry = {key: value for key, value in listing[path].items() if key != _MTIME}
        whole.update(json.dumps([path, entry], sort_keys=True).encode() + b"\n")
    return whole.hexdigest()


def size(listing: Listing) -> int:
    """Bytes in all files of a listing."""
    return sum(entry.get("size", 0) for entry in listing.values())


def compare(folder: Path, listing: Listing, *, thorough: bool = False) -> list[Difference]:
    """What in `folder` is not as `listing` says; empty if all is well.

    A file whose size and modification time are as listed is taken for unchanged; one whose time
    alone differs is hashed, and when the hash is right the time is put back. `thorough` hashes all
    files and reads all extended attributes.
    """
    differences = []
    missing = set(listing)
    for path, found in _walk(folder):
        missing.discard(path)
        entry = listing.get(path)
        if entry is None:
            differences.append(Difference(path, "is not in the manifest"))
        elif what := _difference(folder / path, found, entry, thorough):
            differences.append(Difference(path, what))
    differences += [Difference(path, "is missing") for path in sorted(missing)]
    return differences


def hash_file(path: Path) -> str:
    """The sha256 of a file's contents, in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All objects below `folder`, itself first, parents before children, each with its lstat."""
    yield ".", folder.lstat()
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as found:
            for item in sorted(found, key=lambda item: item.name):
                result = item.stat(follow_symlinks=False)
                path = f"{prefix}{item.name}"
                if _type(result.st_mode):
                    yield path, result
                if stat.S_ISDIR(result.st_mode):
                    pending.append(path + "/")


def _type(mode: int) -> str | None:
    return next((name for name, test in _TYPES.items() if test(mode)), None)


def _plain(found: os.stat_result) -> Entry:
    """What an lstat alone tells."""
    kind = _type(found.st_mode)
    entry: Entry = {
        "type": kind,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }
    if kind == "file":
        entry["size"] = found.st_size
    elif kind in ("char", "block"):
        entry["device"] = [os.major(found.st_rdev), os.minor(found.st_rdev)]
    return entry


def _entry(path: Path, found: os.stat_result) -> Entry:
    entry = _plain(found)
    if entry["type"] == "file":
        entry[_MTIME] = found.st_mtime_ns
        entry["sha256"] = hash_file(path)
    elif entry["type"] == "link":
        entry["target"] = os.readlink(path)  # noqa: PTH115 - Path would drop a trailing slash
    if xattrs := _xattrs(path):
        entry["xattrs"] = xattrs
    return entry


def _xattrs(path: Path) -> dict[str, str]:
    """The extended attributes, values in hex; none where the file system has none."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names)}
    except OSError:
        return {}


def _difference(path: Path, found: os.stat_result, entry: Entry, thorough: bool) -> str | None:
    for key, value in _plain(found).items():
        if value != entry[key]:
            shown = (oct(value), oct(entry[key])) if key == "mode" else (value, entry[key])
            return f"{key} is {shown[0]}, not {shown[1]}"
    if entry["type"] == "link" and (target := os.readlink(path)) != entry["target"]:  # noqa: PTH115
        return f"points to {target}, not to {entry['target']}"
    if entry["type"] == "file" and (thorough or found.st_mtime_ns != entry[_MTIME]):
        if (hashed := hash_file(path)) != entry["sha256"]:
            return f"sha256 is {hashed}, not {entry['sha256']}"
        if found.st_mtime_ns != entry[_MTIME]:
            os.utime(path, ns=(found.st_atime_ns, entry[_MTIME]))
    if thorough and _xattrs(path) != entry.get("xattrs", {}):
        return "extended attributes are not as listed"
    return None


def restore_metadata(path: Path, entry: Entry) -> None:
    """Give a file system object that was just made the owner, mode, attributes and time of `entry`."""
    os.chown(path, entry["uid"], entry["gid"], follow_symlinks=False)
    if entry["type"] != "link":
        path.chmod(entry["mode"])
    for name, value in entry.get("xattrs", {}).items():
        os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
    if entry["type"] == "file":
        os.utime(path, ns=(entry[_MTIME], entry[_MTIME]))

"""A bundle: artifacts in one file, for machines whose registries do not answer.

A tar archive, compressed with zstd where the host has it. `bundle.json` comes first (see `Index`), then
for each entry of the store its manifest `<name>-<key>.json` and its files below `<name>-<key>/`. It is
an ordinary archive, to look into with ordinary tools; but `load` takes from it nothing but the
manifests and the contents of files. Owners, modes, links, devices and attributes come from the
manifests, whose hashes `bundle.json` holds.

The hashes find damage. They do not say who made the bundle: take one from people you trust.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import run
from lab.steps import current_step
from lab.store import space, tree
from lab.store.artifact import Artifact, Manifest, parse
from lab.store.compression import reading, writing
from lab.store.store import Store

FORMAT = 1
INDEX = "bundle.json"

_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_KEY = re.compile(r"[0-9a-f]{16}")
_BLOCK = 1 << 20
_LARGEST_TEXT = 64 << 20
_TAR_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}
_AGAIN = "copy the bundle again, or make it again with `lab bundle create`"


@dataclass(frozen=True)
class Member:
    """An entry of the store in a bundle: `manifest` is the sha256 of its manifest, `size` in bytes."""

    name: str
    key: str
    manifest: str
    size: int

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.key}"


@dataclass(frozen=True)
class Index:
    """What `bundle.json` says: `versions` are those of the release that made the bundle."""

    arch: str
    versions: dict[str, str]
    entries: tuple[Member, ...]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def create(file: Path, artifacts: Sequence[Artifact]) -> None:
    """Write `artifacts` into the bundle `file`; every file is hashed on the way.

    What the setup of a machine needs first (wheels) comes first. Raises `LabError` where the store
    is damaged or the disk is full; then there is no new file.
    """
    if file.is_dir() or not file.parent.is_dir():
        die(f"cannot write a bundle to {file}", hint="name a file in a folder that is there")
    store = Store()
    ordered = sorted(artifacts, key=lambda artifact: (artifact.name != "controller-wheels", artifact.name))
    for artifact in ordered:
        if not store.there(artifact):
            die(
                f"artifact {artifact.name} is not in the store",
                hint="`lab build` builds it",
                code=ExitCode.ARTIFACT,
            )
    texts = [artifact.manifest_file.read_bytes() for artifact in ordered]
    index = Index(
        _arch(),
        lock().versions,
        tuple(
            Member(artifact.name, artifact.key, _sha256(text), artifact.manifest.size)
            for artifact, text in zip(ordered, texts, strict=True)
        ),
    )
    partial = file.with_name(f".{file.name}.partial")
    try:
        with space.explained(file.parent, f"bundle {file}"):
            with (
                writing(partial) as stream,
                tarfile.open(mode="w|", fileobj=stream, format=tarfile.PAX_FORMAT) as tar,
            ):
                _add_text(tar, INDEX, index.to_json().encode())
                for artifact, text in zip(ordered, texts, strict=True):
                    _say(f"{artifact.name}, {space.human(artifact.manifest.size)}")
                    _add_text(tar, artifact.manifest_file.name, text)
                    _add_files(tar, artifact)
            run(["sync", partial], code=ExitCode.HOST)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def load(file: Path) -> list[Artifact]:
    """Put the artifacts of the bundle `file` into the store; returns them.

    Entries that are there and sound stay. The others become entries only after every hash of the
    whole bundle was found right. Raises `LabError`, with the store as it was, where the bundle is
    no bundle, truncated, damaged, or for another kind of machine; a killed load is just repeated.
    """
    store = Store()
    with _readable(file) as tar, ExitStack() as held:
        members = iter(tar)
        index = _index(tar, next(members, None), file)
        _say_versions(index)
        artifacts = [store.entry(member.name, member.key) for member in index.entries]
        # Always in the same order, or two loads at once could wait for each other.
        for artifact in sorted(artifacts, key=lambda artifact: artifact.path.name):
            held.enter_context(store.locked(artifact))
        missing = {artifact.path.name for artifact in artifacts if not store.sound(artifact)}
        needed = sum(member.size for member in index.entries if member.folder in missing)
        space.require(store.tmp, needed + needed // 10, f"loading {file}")
        ready: list[tuple[Artifact, Path, Manifest]] = []
        with space.explained(store.tmp, f"bundle {file}"):
            for member, artifact in zip(index.entries, artifacts, strict=True):
                manifest = _manifest(tar, next(members, None), member, file)
                if member.folder not in missing:
                    _say(f"{member.name} is there already")
                    _skip(members, member, manifest, file)
                    continue
                _say(f"{member.name}, {space.human(member.size)}")
                folder = held.enter_context(store.work_folder(artifact)) / "entry"
                _unpack(tar, members, member, manifest, folder, file)
                ready.append((artifact, folder, manifest))
            if extra := next(members, None):
                _refuse(file, f"{extra.name} is in it, which its index does not list")
            for artifact, folder, manifest in ready:
                if artifact.path.exists():
                    store.put_aside(artifact)
                store.publish(artifact, folder, manifest)
    if step := current_step():
        step.change(len(ready))
    return artifacts


def _arch() -> str:
    return _ARCHES.get(platform.machine(), platform.machine())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _say(text: str) -> None:
    if step := current_step():
        step.say(text)


def _say_versions(index: Index) -> None:
    ours = lock().versions
    other = [f"{part} {version}" for part, version in index.versions.items() if ours.get(part) != version]
    if other:
        _say(f"this bundle is of another release: {', '.join(other)}; `lab up` here may need registries")


def _refuse(file: Path, what: str) -> NoReturn:
    die(f"the bundle {file} is damaged: {what}", hint=_AGAIN, code=ExitCode.ARTIFACT)


# Writing


def _add_text(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


class _Hashed:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _add_files(tar: tarfile.TarFile, artifact: Artifact) -> None:
    for path, entry in artifact.manifest.files.items():
        info = tarfile.TarInfo(str(PurePosixPath(artifact.path.name) / path))
        info.type = _TAR_TYPES[entry["type"]]
        info.mode, info.uid, info.gid = entry["mode"], entry["uid"], entry["gid"]
        info.linkname = entry.get("target", "")
        info.devmajor, info.devminor = entry.get("device", (0, 0))
        if entry["type"] != "file":
            tar.addfile(info)
            continue
        info.size = entry["size"]
        info.mtime = entry["mtime_ns"] // 10**9
        if _add_file(tar, info, artifact.path / path) != entry["sha256"]:
            die(
                f"artifact {artifact.name} is damaged: {path} is not as its manifest says",
                hint=f"`lab build {artifact.name}` puts it aside and builds it again",
                code=ExitCode.ARTIFACT,
            )


def _add_file(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> str | None:
    """Add the file; returns its sha256, or None (and adds nothing) if it is not of the right size."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != info.size:
                return None
            hashed = _Hashed(file)
            tar.addfile(info, hashed)
            return hashed.sha256.hexdigest()
    except FileNotFoundError:
        return None


# Reading


@contextmanager
def _readable(file: Path) -> Iterator[tarfile.TarFile]:
    """The bundle as a tar stream; faults of the file become `LabError`."""
    try:
        with reading(file) as stream:
            try:
                with tarfile.open(mode="r|", fileobj=stream) as tar:
                    yield tar
            except (tarfile.TarError, EOFError) as fault:
                _refuse(file, f"{fault}; it may be cut off")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as fault:
        if fault.filename != str(file):
            raise
        die(
            f"cannot read the bundle {file}: {fault.strerror}",
            hint="`lab bundle create FILE` makes one",
            code=ExitCode.USAGE,
        )


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, file: Path) -> bytes:
    if member is None:
        _refuse(file, f"it ends before {name}")
    content = tar.extractfile(member) if member.isreg() and member.name == name else None
    if content is None:
        _refuse(file, f"{member.name} is in the place of {name}")
    if member.size > _LARGEST_TEXT:
        _refuse(file, f"{name} is larger than any manifest")
    return content.read()


def _index(tar: tarfile.TarFile, first: tarfile.TarInfo | None, file: Path) -> Index:
    if first is None or first.name != INDEX:
        die(
            f"{file} is not a bundle",
            hint="a bundle is what `lab bundle create FILE` wrote",
            code=ExitCode.ARTIFACT,
        )
    try:
        data: dict[str, Any] = json.loads(_text(tar, first, INDEX, file))
        if data["format"] != FORMAT:
            die(
                f"{file} has format {data['format']}; this release reads format {FORMAT}",
                hint="make it again with the release that is to load it",
                code=ExitCode.ARTIFACT,
            )
        entries = tuple(Member(**entry) for entry in data["entries"])
        index = Index(data["arch"], data["versions"], entries)
        wrong = [
            entry.folder
            for entry in entries
            if not _NAME.fullmatch(entry.name) or not _KEY.fullmatch(entry.key) or entry.size < 0
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        _refuse(file, f"its index cannot be read: {type(fault).__name__}: {fault}")
    if wrong or len({entry.folder for entry in entries}) != len(entries):
        _refuse(file, f"its index is wrong: {', '.join(wrong) or 'an entry is there twice'}")
    if index.arch != _arch():
        die(
            f"{file} is for {index.arch} machines; this one is {_arch()}",
            hint="make a bundle on a machine of the same kind",
            code=ExitCode.ARTIFACT,
        )
    return index


def _manifest(tar: tarfile.TarFile, found: tarfile.TarInfo | None, member: Member, file: Path) -> Manifest:
    """The manifest of `member`: as the index hashed it, and safe to make files by."""
    name = f"{member.folder}.json"
    text = _text(tar, found, name, file)
    if _sha256(text) != member.manifest:
        _refuse(file, f"the hash of {name} is wrong")
    manifest = parse(text, f"{name} in {file}")
    if (manifest.name, manifest.key) != (member.name, member.key):
        _refuse(file, f"{name} is the manifest of {manifest.name}-{manifest.key}")
    for path, entry in manifest.files.items():
        if not _safe(path, manifest.files) or entry.get("type") not in _TAR_TYPES:
            _refuse(file, f"{name} lists {path!r}, which is no path inside of it")
    if manifest.files.get(".", {}).get("type") != "dir" or manifest.digest != tree.digest(manifest.files):
        _refuse(file, f"{name} contradicts itself")
    return manifest


def _safe(path: str, files: tree.Listing) -> bool:
    """Whether `path` is below the entry, by way of folders that the entry itself has."""
    if path == ".":
        return True
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or "\0" in path:
        return False
    return files.get(str(pure.parent), {}).get("type") == "dir"


def _contents(
    members: Iterator[tarfile.TarInfo], member: Member, manifest: Manifest, file: Path
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files of one entry, as they come: exactly those that its manifest lists."""
    count = len(manifest.files)
    missing = {path for path, entry in manifest.files.items() if entry["type"] == "file"}
    for _ in range(count):
        found = next(members, None)
        if found is None:
            _refuse(file, f"it ends in the middle of {member.folder}")
        path = _below(found.name, member)
        if path not in manifest.files:
            _refuse(file, f"{found.name} is in it, which no manifest lists")
        if not found.isreg():
            continue
        if path not in missing or found.size != manifest.files[path]["size"]:
            _refuse(file, f"{found.name} is not as its manifest says")
        missing.discard(path)
        yield path, found
    if missing:
        _refuse(file, f"{member.folder}/{min(missing)} is not in it")


def _below(name: str, member: Member) -> str:
    """The path of the tar member `name` in the entry; empty (no manifest lists that) if it is elsewhere."""
    path = PurePosixPath(name)
    return str(path.relative_to(member.folder)) if path.is_relative_to(member.folder) else ""


def _skip(members: Iterator[tarfile.TarInfo], member: Member, manifest: Manifest, file: Path) -> None:
    for _ in _contents(members, member, manifest, file):
        pass


def _unpack(
    tar: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    member: Member,
    manifest: Manifest,
    folder: Path,
    file: Path,
) -> None:
    """Make the entry in `folder`: all but the files by the manifest, the files' contents by the tar."""
    parents_first = sorted(manifest.files, key=lambda path: PurePosixPath(path).parts)
    try:
        for path in parents_first:
            _make(folder / path, manifest.files[path])
        for path, found in _contents(members, member, manifest, file):
            content = tar.extractfile(found)
            assert content
            if _write(folder / path, content) != manifest.files[path]["sha256"]:
                _refuse(file, f"the hash of {found.name} is wrong")
        # Children first: a folder may be closed to its owner.
        for path in reversed(parents_first):
            tree.restore_metadata(folder / path, manifest.files[path])
    except PermissionError as fault:
        die(
            f"cannot make {fault.filename} as the bundle says: {fault.strerror}",
            hint="load bundles as root: they hold files of many owners",
            code=ExitCode.HOST,
        )


def _make(path: Path, entry: tree.Entry) -> None:
    kind = entry["type"]
    if kind == "dir":
        path.mkdir(mode=0o700)
    elif kind == "link":
        path.symlink_to(entry["target"])
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind in ("char", "block"):
        kind_bits = 0o020000 if kind == "char" else 0o060000
        os.mknod(path, kind_bits | 0o600, os.makedev(*entry["device"]))


def _write(path: Path, content: IO[bytes]) -> str:
    hashed = hashlib.sha256()
    with path.open("xb") as out:
        while block := content.read(_BLOCK):
            hashed.update(block)
            out.write(block)
    return hashed.hexdigest()

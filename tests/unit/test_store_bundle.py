"""Bundles: what goes in comes out, and nothing of a bad one gets into the store."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from lab import lock as lock_file
from lab.errors import ExitCode, LabError
from lab.lock import Lock
from lab.steps import Steps
from lab.store import Artifact, Building, Recipe, Store, bundle, tree

MACHINE = platform.machine


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the machine that makes bundles."""
    monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "here"))
    return Store()


@pytest.fixture
def there(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Go to the machine that loads bundles: gives its store."""

    def go() -> Store:
        monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "there"))
        return Store()

    return go


def fill(building: Building) -> None:
    root = building.folder / "rootfs"
    (root / "usr/bin").mkdir(parents=True)
    program = root / "usr/bin/program"
    program.write_bytes(os.urandom(300_000))
    program.chmod(0o4755)
    (root / "bin").symlink_to("usr/bin")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "shut").mkdir()
    (root / "shut/file").write_text("inside")
    (root / "shut").chmod(0o500)
    os.mkfifo(root / "pipe", 0o640)
    (root / "empty").touch()
    (root / f"a name with spaces, ünïcödé and {'length' * 30}").write_text("x")
    os.utime(root / "empty", ns=(0, 1_234_567_890_123_456_789))
    building.folder.chmod(0o700)


def artifact(store: Store, name: str = "thing", build: Callable[[Building], None] = fill) -> Artifact:
    return store.ensure(Recipe(name, name, {"name": name}, build), Steps())


def small(building: Building) -> None:
    (building.folder / "folder").mkdir()
    (building.folder / "folder/file").write_text("content\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bundle.tar"


def assert_nothing_loaded(store: Store) -> None:
    for folder in (store.entries, store.tmp, store.quarantine):
        assert not folder.exists() or list(folder.iterdir()) == []


def assert_refused(file: Path, there: Store, match: str) -> LabError:
    with pytest.raises(LabError, match=match) as caught:
        bundle.load(file)
    assert caught.value.code is ExitCode.ARTIFACT
    assert_nothing_loaded(there)
    return caught.value


def test_what_goes_in_comes_out(store: Store, there: Callable[[], Store], file: Path) -> None:
    made = [artifact(store), artifact(store, "other-thing", small)]
    bundle.create(file, made)
    target = there()
    loaded = bundle.load(file)
    assert {entry.name for entry in loaded} == {"thing", "other-thing"}
    for before in made:
        after = target.entry(before.name, before.key)
        target.verify(after)
        assert after.manifest == before.manifest
        assert tree.scan(after.path) == tree.scan(before.path), "every owner, mode, time, link and byte"
    assert list(target.tmp.iterdir()) == []


def test_loading_again_changes_nothing(store: Store, there: Callable[[], Store], file: Path) -> None:
    bundle.create(file, [artifact(store)])
    there()
    first, second = Steps(), Steps()
    with first.step("load", "Load"):
        loaded = bundle.load(file)
    inode = loaded[0].path.stat().st_ino
    with second.step("load", "Load"):
        assert bundle.load(file) == loaded
    assert (first.changed, second.changed) == (1, 0)
    assert loaded[0].path.stat().st_ino == inode


def test_loading_replaces_a_damaged_entry(store: Store, there: Callable[[], Store], file: Path) -> None:
    bundle.create(file, [artifact(store, build=small)])
    target = there()
    (entry,) = bundle.load(file)
    (entry.path / "folder/file").write_text("spoilt!\n")
    bundle.load(file)
    target.verify(entry)
    assert len(list(target.quarantine.iterdir())) == 1


def test_what_a_killed_load_left_is_swept_by_the_next(
    store: Store, there: Callable[[], Store], file: Path
) -> None:
    made = artifact(store)
    bundle.create(file, [made])
    target = there()
    left = target.tmp / f"{made.path.name}.killed" / "entry"
    left.mkdir(parents=True)
    bundle.load(file)
    assert list(target.tmp.iterdir()) == []


@pytest.mark.skipif(not shutil.which("zstd"), reason="this host has no zstd")
def test_a_bundle_is_compressed_where_the_host_can(store: Store, file: Path) -> None:
    bundle.create(file, [artifact(store)])
    assert file.read_bytes()[:4] == bytes.fromhex("28b52ffd")


def test_without_zstd_a_bundle_is_a_plain_archive(
    store: Store, there: Callable[[], Store], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(store)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(bundle, "run", lambda argv, **options: None)  # sync
    bundle.create(file, [made])
    monkeypatch.undo()
    with tarfile.open(file, "r:") as tar:
        names = tar.getnames()
    assert names[0] == "bundle.json"
    assert f"{made.path.name}/rootfs/usr/bin/program" in names
    target = there()
    bundle.load(file)
    target.verify(target.entry(made.name, made.key))


def test_wheels_come_first_so_that_a_setup_gets_at_them_at_once(store: Store, file: Path) -> None:
    names = ["alpha", "controller-wheels", "zeta"]
    bundle.create(file, [artifact(store, name, small) for name in names])
    listed = subprocess.run(["tar", "-tf", file], capture_output=True, text=True, check=True).stdout.split()
    assert listed[0] == "bundle.json"
    assert listed[1].startswith("controller-wheels-")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.2, 0.5, 0.8, 0.99, 0.9999])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_bundle_that_is_cut_off_is_refused(
    store: Store, there: Callable[[], Store], file: Path, kept: float, compressed: bool
) -> None:
    make_bundle(file, [artifact(store)], compressed)
    whole = file.read_bytes()
    # A tar archive ends in blocks of zeros that hold nothing: they may go.
    content = whole if compressed else whole.rstrip(b"\0")
    file.write_bytes(content[: int(len(content) * kept)])
    assert_refused(file, there(), "damaged|not a bundle|cut off")


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_bundle_with_a_wrong_byte_is_refused(
    store: Store, there: Callable[[], Store], file: Path, where: float, compressed: bool
) -> None:
    make_bundle(file, [artifact(store)], compressed)
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    file.write_bytes(content)
    assert_refused(file, there(), "damaged|zstd failed|not a manifest")


def make_bundle(file: Path, artifacts: list[Artifact], compressed: bool) -> None:
    """A bundle, compressed or not."""
    with pytest.MonkeyPatch.context() as patch:
        if not compressed:
            patch.setattr("lab.store.compression.shutil.which", lambda name: None)
        bundle.create(file, artifacts)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x28\xb5\x2f\xfd and no more", os.urandom(5000)])
def test_what_is_no_bundle_is_refused(there: Callable[[], Store], file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert_refused(file, there(), "damaged|not a bundle")


def test_another_archive_is_refused(there: Callable[[], Store], file: Path) -> None:
    with tarfile.open(file, "w") as tar:
        tar.add(__file__, "test.py")
    assert_refused(file, there(), "is not a bundle")


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_file_that_cannot_be_read_is_told(there: Callable[[], Store], tmp_path: Path, name: str) -> None:
    there()
    with pytest.raises(LabError, match="cannot read the bundle") as caught:
        bundle.load(tmp_path / name)
    assert caught.value.code is ExitCode.USAGE


def test_a_bundle_for_other_machines_is_refused(
    store: Store, there: Callable[[], Store], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(store, build=small)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    bundle.create(file, [made])
    monkeypatch.setattr(platform, "machine", MACHINE)
    assert_refused(file, there(), "is for arm64 machines; this one is amd64")


def test_a_bundle_of_another_release_is_loaded_and_told(
    store: Store, there: Callable[[], Store], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(store, build=small)
    ours = lock_file.lock()
    older = Lock({**ours.versions, "kubernetes": "v1.2.3"}, ours.raw)
    monkeypatch.setattr(bundle, "lock", lambda: older)
    bundle.create(file, [made])
    monkeypatch.setattr(bundle, "lock", lambda: ours)
    target = there()
    steps = Steps()
    notes: list[str] = []
    monkeypatch.setattr(bundle, "_say", notes.append)
    with steps.step("load", "Load"):
        bundle.load(file)
    assert any("another release: kubernetes v1.2.3" in note for note in notes)
    assert target.there(target.entry(made.name, made.key))


def test_a_damaged_artifact_does_not_get_into_a_bundle(store: Store, file: Path) -> None:
    made = artifact(store, build=small)
    path = made.path / "folder/file"
    times = path.stat()
    path.write_text("spoilt!\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(LabError, match="folder/file is not as its manifest says"):
        bundle.create(file, [made])
    assert [path.name for path in file.parent.iterdir()] == ["here"]


def test_a_bundle_of_what_is_not_there_is_refused(store: Store, file: Path) -> None:
    with pytest.raises(LabError, match="artifact thing is not in the store"):
        bundle.create(file, [store.entry("thing", "0" * 16)])


def test_a_failed_create_leaves_the_bundle_of_before(store: Store, file: Path) -> None:
    file.write_text("the bundle of before")
    made = artifact(store, build=small)
    (made.path / "folder/file").unlink()
    with pytest.raises(LabError):
        bundle.create(file, [made])
    assert file.read_text() == "the bundle of before"
    assert sorted(path.name for path in file.parent.iterdir()) == ["bundle.tar", "here"]


@contextmanager
def onto_a_full_disk(path: Path) -> Iterator[IO[bytes]]:
    with Path("/dev/full").open("wb") as file:
        yield file


def test_a_full_disk_is_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(store)
    monkeypatch.setattr(bundle, "writing", onto_a_full_disk)
    with pytest.raises(LabError, match="no space left on the disk") as caught:
        bundle.create(tmp_path / "bundle", [made])
    assert caught.value.code is ExitCode.HOST


class Forged:
    """A bundle made by hand, with right hashes: only what it lists is evil."""

    def __init__(
        self, files: dict[str, dict[str, Any]], members: list[tuple[tarfile.TarInfo, bytes]]
    ) -> None:
        self.files = {".": folder(), **files}
        self.members = members
        self.name, self.key = "thing", "0123456789abcdef"
        self.extra: list[tuple[tarfile.TarInfo, bytes]] = []

    def write(self, file: Path) -> None:
        manifest = {
            "name": self.name,
            "key": self.key,
            "inputs": {},
            "tools": {},
            "facts": {},
            "built": "",
            "seconds": 0,
            "digest": tree.digest(self.files),
            "size": 0,
            "files": self.files,
            "format": 1,
        }
        text = json.dumps(manifest).encode()
        member = {
            "name": self.name,
            "key": self.key,
            "manifest": hashlib.sha256(text).hexdigest(),
            "size": 0,
        }
        index = {
            "format": 1,
            "arch": {"x86_64": "amd64"}.get(platform.machine(), platform.machine()),
            "versions": lock_file.lock().versions,
            "entries": [member],
        }
        with tarfile.open(file, "w") as tar:
            add(tar, tarfile.TarInfo("bundle.json"), json.dumps(index).encode())
            add(tar, tarfile.TarInfo(f"{self.name}-{self.key}.json"), text)
            for info, data in [*self.members, *self.extra]:
                add(tar, info, data)


def add(tar: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def folder() -> dict[str, Any]:
    return {"type": "dir", "mode": 0o755, "uid": os.getuid(), "gid": os.getgid()}


def regular(data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {**folder(), "type": "file", "mode": 0o644, "size": len(data), "mtime_ns": 0, "sha256": digest}


def link(target: str) -> dict[str, Any]:
    return {**folder(), "type": "link", "mode": 0o777, "target": target}


PREFIX = "thing-0123456789abcdef"
EVIL = b"evil"


def holding(path: str, files: dict[str, dict[str, Any]]) -> Forged:
    """A bundle with one file at `path` and the other entries `files`."""
    info = tarfile.TarInfo(f"{PREFIX}/{path}")
    directory = [(tarfile.TarInfo(f"{PREFIX}/."), b"")]
    directory[0][0].type = tarfile.DIRTYPE
    others = []
    for name, entry in files.items():
        other = tarfile.TarInfo(f"{PREFIX}/{name}")
        other.type = tarfile.SYMTYPE if entry["type"] == "link" else tarfile.DIRTYPE
        others.append((other, b""))
    return Forged({**files, path: regular(EVIL)}, [*directory, *others, (info, EVIL)])


def test_a_bundle_made_by_hand_is_loaded_when_all_is_right(there: Callable[[], Store], file: Path) -> None:
    holding("folder/file", {"folder": folder()}).write(file)
    there()
    (entry,) = bundle.load(file)
    assert (entry.path / "folder/file").read_bytes() == EVIL


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("../evil", {}),
        ("folder/../../evil", {"folder": folder()}),
        ("/tmp/underpass-evil", {}),
        ("out/evil", {"out": link("../../..")}),
        ("out/evil", {"out": link("/tmp")}),
        ("no/such/folder", {}),
        ("./file", {}),
        ("folder//file", {"folder": folder()}),
    ],
)
def test_a_path_that_leads_out_of_the_entry_is_refused(
    there: Callable[[], Store], file: Path, tmp_path: Path, path: str, files: dict[str, dict[str, Any]]
) -> None:
    holding(path, files).write(file)
    assert_refused(file, there(), "which is no path inside of it")
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/underpass-evil").exists()


@pytest.mark.parametrize(
    ("name", "key"), [("../thing", "0123456789abcdef"), ("thing", "../../../tmp/x"), ("", "0" * 16)]
)
def test_an_entry_name_that_leads_out_of_the_store_is_refused(
    there: Callable[[], Store], file: Path, name: str, key: str
) -> None:
    forged = holding("file", {})
    forged.name, forged.key = name, key
    forged.write(file)
    assert_refused(file, there(), "its index is wrong")


def test_a_file_that_no_manifest_lists_is_refused(there: Callable[[], Store], file: Path) -> None:
    forged = holding("file", {})
    forged.extra.append((tarfile.TarInfo(f"{PREFIX}/more"), EVIL))
    forged.write(file)
    assert_refused(file, there(), "more is in it, which its index does not list")


def test_contents_that_the_manifest_does_not_know_are_refused(there: Callable[[], Store], file: Path) -> None:
    forged = holding("file", {})
    forged.members[-1] = (forged.members[-1][0], b"EVIL")
    forged.write(file)
    assert_refused(file, there(), "the hash of .*/file is wrong")


def test_a_link_in_the_place_of_a_file_is_refused(there: Callable[[], Store], file: Path) -> None:
    forged = holding("file", {})
    info = tarfile.TarInfo(f"{PREFIX}/file")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    forged.members[-1] = (info, b"")
    forged.write(file)
    assert_refused(file, there(), "file is not in it")

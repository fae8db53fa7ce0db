"""Entries of the artifact store: made once, found damaged, put aside, built again, removed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.errors import ExitCode, LabError
from lab.run import run
from lab.steps import Step, Steps
from lab.store import Artifact, Building, Recipe, Store, space
from lab.store.store import remove


class Notes:
    """A reporter that keeps what the steps say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, step: Step) -> None:
        pass

    def noted(self, step: Step) -> None:
        self.said.append(step.note)

    def finished(self, step: Step) -> None:
        pass


class Builder:
    """A recipe of a small tree that counts how often it is built."""

    def __init__(self, then: Callable[[Building], None] = lambda building: None, size: int = 0) -> None:
        self.built = 0
        self._then = then
        self.recipe = Recipe("thing", "A thing", {"version": 1}, self._build, space=size)

    def _build(self, building: Building) -> None:
        self.built += 1
        (building.folder / "bin").mkdir()
        program = building.folder / "bin" / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        (building.folder / "bin" / "alias").symlink_to("program")
        (building.folder / "text").write_text("as it was\n")
        building.tools["maker"] = "1.0"
        building.facts["seen"] = ["something"]
        self._then(building)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def made(store: Store, builder: Builder, notes: Notes | None = None) -> Artifact:
    return store.ensure(builder.recipe, Steps(notes))


def assert_nothing_half_made(store: Store) -> None:
    assert list(store.tmp.iterdir()) == []
    names = {path.name for path in store.entries.iterdir()}
    assert all(f"{name}.json" in names for name in names if not name.endswith(".json"))


def test_an_artifact_is_built_once(store: Store) -> None:
    builder = Builder()
    steps = Steps()
    artifact = store.ensure(builder.recipe, steps)
    assert artifact.path == store.entries / f"thing-{builder.recipe.key}"
    assert (artifact.path / "text").read_text() == "as it was\n"
    assert steps.changed == 1
    again = Steps()
    assert store.ensure(builder.recipe, again) == artifact
    assert (builder.built, again.changed) == (1, 0)
    assert_nothing_half_made(store)


def test_the_manifest_tells_inputs_tools_facts_and_every_file(store: Store) -> None:
    manifest = made(store, Builder()).manifest
    assert manifest.inputs == {"version": 1}
    assert manifest.tools == {"maker": "1.0"}
    assert manifest.facts == {"seen": ["something"]}
    assert set(manifest.files) == {".", "bin", "bin/program", "bin/alias", "text"}
    assert manifest.files["bin/program"]["mode"] == 0o755
    assert manifest.files["bin/alias"]["target"] == "program"
    assert manifest.size == len("#!/bin/sh\n") + len("as it was\n")


def test_other_inputs_are_another_entry(store: Store) -> None:
    first = made(store, Builder())
    other = Builder()
    other.recipe = Recipe("thing", "A thing", {"version": 2}, other.recipe.build)
    second = made(store, other)
    assert first.path != second.path
    assert store.there(first) and store.there(second)
    assert first.manifest.digest == second.manifest.digest, "the same files have the same digest"


def test_the_users_umask_does_not_close_an_artifact_to_the_nodes(store: Store) -> None:
    before = os.umask(0o077)
    try:
        artifact = made(store, Builder())
        assert os.umask(0o077) == 0o077, "the user's umask is put back"
    finally:
        os.umask(before)
    assert artifact.path.stat().st_mode & 0o777 == 0o755
    assert artifact.path.parent.stat().st_mode & 0o777 == 0o755
    assert (artifact.path / "text").stat().st_mode & 0o777 == 0o644


def test_a_build_that_fails_leaves_nothing(store: Store) -> None:
    def fail(building: Building) -> None:
        raise LabError("the compiler is unhappy", code=ExitCode.ARTIFACT)

    with pytest.raises(LabError, match="the compiler is unhappy"):
        made(store, Builder(fail))
    assert_nothing_half_made(store)
    assert made(store, Builder()).path.is_dir()


def spoil_content(path: Path) -> None:
    (path / "text").write_text("as it was?")


def spoil_mode(path: Path) -> None:
    (path / "bin/program").chmod(0o4755)


def remove_file(path: Path) -> None:
    (path / "text").unlink()


def add_file(path: Path) -> None:
    (path / "bin/extra").write_text("")


def turn_link(path: Path) -> None:
    (path / "bin/alias").unlink()
    (path / "bin/alias").symlink_to("/etc/passwd")


def remove_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


def spoil_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").write_text("{")


DAMAGES = [spoil_content, spoil_mode, remove_file, add_file, turn_link, remove_manifest, spoil_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_put_aside_and_built_again(store: Store, damage: Callable[[Path], None]) -> None:
    builder, notes = Builder(), Notes()
    artifact = made(store, builder)
    damage(artifact.path)
    rebuilt = made(store, builder, notes)
    assert builder.built == 2
    assert (rebuilt.path / "text").read_text() == "as it was\n"
    assert store.check(rebuilt, thorough=True) == []
    aside = list(store.quarantine.iterdir())
    assert len(aside) == 1
    assert any(f"the damaged thing was moved to {aside[0]}" in note for note in notes.said)


def test_the_note_says_what_is_wrong(store: Store) -> None:
    notes = Notes()
    builder = Builder()
    artifact = made(store, builder)
    (artifact.path / "text").write_text("as it wa$\n")
    made(store, builder, notes)
    assert any("text: sha256 is" in note and "is damaged" in note for note in notes.said), notes.said


def test_a_file_that_was_only_touched_is_hashed_and_kept(store: Store) -> None:
    builder = Builder()
    artifact = made(store, builder)
    listed = artifact.manifest.files["text"]["mtime_ns"]
    os.utime(artifact.path / "text", ns=(1, 1))
    made(store, builder)
    assert builder.built == 1
    assert (artifact.path / "text").stat().st_mtime_ns == listed


def test_damage_that_stat_does_not_show_is_found_by_verify_and_mended_by_the_next_build(store: Store) -> None:
    builder = Builder()
    artifact = made(store, builder)
    file = artifact.path / "text"
    times = file.stat()
    file.write_text("as it wa$\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.check(artifact) == []
    with pytest.raises(LabError, match="artifact thing is damaged") as caught:
        store.verify(artifact)
    assert caught.value.code is ExitCode.ARTIFACT
    assert any(detail.startswith("text: sha256 is") for detail in caught.value.details)
    made(store, builder)
    assert builder.built == 2
    store.verify(artifact)


def test_verify_names_an_artifact_that_is_not_there(store: Store) -> None:
    with pytest.raises(LabError, match="thing is not in the store") as caught:
        store.verify(store.entry("thing", "0" * 16))
    assert caught.value.code is ExitCode.ARTIFACT


def write_until_full(building: Building) -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)


def program_finds_disk_full(building: Building) -> None:
    run(["cp", "/etc/passwd", "/dev/full"])


@pytest.mark.parametrize("meanwhile", [write_until_full, program_finds_disk_full])
def test_a_full_disk_in_the_middle_is_told_and_leaves_nothing(
    store: Store, meanwhile: Callable[[Building], None]
) -> None:
    with pytest.raises(LabError, match="no space left on the disk") as caught:
        made(store, Builder(meanwhile))
    assert caught.value.code is ExitCode.HOST
    assert str(store.tmp) in caught.value.message
    assert caught.value.hint
    assert_nothing_half_made(store)


def test_other_faults_of_the_system_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, space.explained(tmp_path, "x"):
        raise OSError(errno.EIO, "a broken disk")
    assert caught.value.errno == errno.EIO


def test_a_build_that_cannot_fit_is_refused_before_it_begins(store: Store) -> None:
    free = shutil.disk_usage(store.root.parent).free
    builder = Builder(size=free * 2)
    with pytest.raises(LabError, match="not enough disk space for building thing") as caught:
        made(store, builder)
    assert builder.built == 0
    assert caught.value.code is ExitCode.HOST
    assert f"{space.human(free * 2)} needed" in caught.value.message
    assert " free at " in caught.value.message


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot make") as caught:
        made(Store(tmp_path / "file" / "cache"), Builder())
    assert caught.value.code is ExitCode.HOST


def test_clean_removes_what_is_not_kept_and_what_was_put_aside(store: Store) -> None:
    kept, builder = Builder(), Builder()
    builder.recipe = Recipe("other-thing", "Another", {"version": 1}, builder.recipe.build)
    artifact = made(store, kept)
    spoil_content(artifact.path)
    made(store, kept)
    made(store, builder)
    (store.entries / f"thing-{'0' * 16}.json").write_text("left without its folder")
    assert store.clean({artifact.path.name}) == 3
    assert sorted(path.name for path in store.entries.iterdir()) == [
        artifact.path.name,
        artifact.manifest_file.name,
    ]
    assert list(store.quarantine.iterdir()) == []
    assert store.clean({artifact.path.name}) == 0


def test_sweep_removes_what_killed_builds_left_and_nothing_of_a_running_one(store: Store) -> None:
    running = Builder().recipe
    artifact = made(store, Builder())
    dead = store.tmp / f"dead-{'1' * 16}.abc" / "entry"
    dead.mkdir(parents=True)
    with store.locked(artifact), store.work_folder(artifact) as work:
        assert store.sweep() == 1
        assert work.is_dir()
    assert not dead.exists()
    assert running.key == artifact.key


def test_remove_takes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "link")
    remove(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_clean_leaves_what_is_mounted(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builder = Builder()
    used = made(store, builder)
    spoil_content(used.path)
    made(store, builder)  # the damaged one, on which a node runs, is put aside
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"42 1 0:7 / /run/node rw - overlay overlay rw,lowerdir={used.path}/rootfs\n")
    monkeypatch.setattr("lab.store.store.MOUNTS", mountinfo)
    assert store.clean(set()) == 0
    assert store.there(used) and len(list(store.quarantine.iterdir())) == 1
    mountinfo.write_text("")
    assert store.clean(set()) == 2

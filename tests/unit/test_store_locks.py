"""The store under two builds at once, and under kills at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.paths import ROOT
from lab.progress import PlainLines
from lab.steps import Steps
from lab.store import Building, Recipe, Store
from tests.sizes import SIZES

FILES = 40
LIMIT = 60  # seconds within which any of these processes must have ended


def recipe(journal: Path) -> Recipe:
    """A recipe that notes each build in `journal` and waits, while building, for `journal`.go."""

    def build(building: Building) -> None:
        with journal.open("a") as file:
            file.write(f"{os.getpid()}\n")
        for number in range(FILES):
            (building.folder / str(number)).write_bytes(bytes([number]) * 50_000)
        while not journal.with_suffix(".go").exists():
            time.sleep(0.01)

    return Recipe("slow", "A slow thing", {}, build)


def write(root: str, journal: str) -> None:
    """What a writer process does: build, telling its steps on stderr."""
    Store(Path(root)).ensure(recipe(Path(journal)), Steps(PlainLines(sys.stderr)))


def writer(store: Store, journal: Path) -> subprocess.Popen[str]:
    code = f"from {__name__} import write; write({str(store.root)!r}, {str(journal)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def builds(journal: Path) -> int:
    return len(journal.read_text().splitlines()) if journal.exists() else 0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_of_two_at_once_one_builds_and_the_other_says_that_it_waits(store: Store, journal: Path) -> None:
    first = writer(store, journal)
    deadline = time.monotonic() + LIMIT
    while not builds(journal):
        assert first.poll() is None and time.monotonic() < deadline
    second = writer(store, journal)
    assert second.stderr and first.stderr
    said = [second.stderr.readline(), second.stderr.readline()]
    assert f"another build of slow is running (process {first.pid}), waiting" in said[1], said
    journal.with_suffix(".go").touch()
    assert first.wait(LIMIT) == 0, first.stderr.read()
    assert second.wait(LIMIT) == 0, said
    assert "another command has just built it" in second.stderr.read()
    assert builds(journal) == 1
    store.verify(store.entry("slow", recipe(journal).key))


def test_a_waiter_builds_when_the_one_before_it_was_killed(store: Store, journal: Path) -> None:
    first = writer(store, journal)
    deadline = time.monotonic() + LIMIT
    while not builds(journal):
        assert first.poll() is None and time.monotonic() < deadline
    second = writer(store, journal)
    assert second.stderr
    assert "A slow thing" in second.stderr.readline()
    assert "waiting" in second.stderr.readline()
    first.kill()
    journal.with_suffix(".go").touch()
    assert second.wait(LIMIT) == 0, second.stderr.read()
    assert builds(journal) == 2
    store.verify(store.entry("slow", recipe(journal).key))
    assert list(store.tmp.iterdir()) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that a writer takes that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "journal.go").touch()
    began = time.monotonic()
    process = writer(Store(folder / "cache"), folder / "journal")
    assert process.wait(LIMIT) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("round_", range(SIZES.store_kills))
def test_a_kill_at_any_moment_leaves_the_entry_whole_or_absent(
    store: Store, journal: Path, undisturbed: float, round_: int
) -> None:
    journal.with_suffix(".go").touch()
    process = writer(store, journal)
    # From the start of the process to a little after its end, spread evenly over the rounds.
    moment = undisturbed * 1.1 * (round_ + 1) / SIZES.store_kills
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT)
    entry = store.entry("slow", recipe(journal).key)
    if store.there(entry):
        store.verify(entry)
    else:
        with pytest.raises(LabError):
            store.verify(entry)
    store.sweep()  # as each build begins: one killed behind its publication leaves its workplace
    made = store.ensure(recipe(journal), Steps())
    store.verify(made)
    assert len(made.manifest.files) == FILES + 1
    assert list(store.tmp.iterdir()) == []
    assert {path.name for path in store.entries.iterdir()} == {made.path.name, made.manifest_file.name}

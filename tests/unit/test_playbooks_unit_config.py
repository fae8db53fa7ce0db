"""`unit-config`: whether a unit runs with the files that are there now."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.paths import ROOT

SCRIPT = ROOT / "playbooks/roles/node/files/usr/local/lib/underpass/unit-config"


class Config:
    """A unit `app.service` that reads a file, a folder and a link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "conf").write_text("a = 1\n")
        (folder / "pki").mkdir()
        (folder / "pki" / "key").write_text("k\n")
        (folder / "current").symlink_to("/store/one")
        self.paths = [str(folder / name) for name in ("conf", "pki", "current", "not-there-yet")]

    def run(self, *arguments: str, invocation: str = "i1") -> str:
        env = {**os.environ, "UNDERPASS_NOTES": str(self.folder / "notes"), "INVOCATION_ID": invocation}
        done = subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, check=True)
        return done.stdout

    def start(self, invocation: str = "i1") -> None:
        self.run("note", "app.service", *self.paths, invocation=invocation)

    def state(self) -> str:
        return self.run("list", "app.service", "never.service")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(tmp_path)
    config.start()
    return config


def test_a_unit_just_started_is_fresh(config: Config) -> None:
    assert config.state() == "app.service i1 fresh\n"


def _add(folder: Path) -> None:
    (folder / "pki" / "more").write_text("x")


def _relink(folder: Path) -> None:
    (folder / "current").unlink()
    (folder / "current").symlink_to("/store/two")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "conf").write_text("a = 2\n"),
        lambda folder: (folder / "conf").unlink(),
        lambda folder: (folder / "pki" / "key").write_text("other\n"),
        lambda folder: (folder / "not-there-yet").write_text(""),
        _add,
        _relink,
    ],
)
def test_any_change_of_what_it_reads_is_noticed(config: Config, change: Any) -> None:
    change(config.folder)
    assert config.state() == "app.service i1 stale\n"
    config.start("i2")
    assert config.state() == "app.service i2 fresh\n"


def test_a_change_that_was_undone_is_none(config: Config) -> None:
    (config.folder / "conf").write_text("a = 2\n")
    (config.folder / "conf").write_text("a = 1\n")
    assert config.state() == "app.service i1 fresh\n"


def test_a_start_with_a_file_that_was_put_back_later_is_stale(config: Config) -> None:
    (config.folder / "conf").write_text("by hand\n")
    config.start("i2")
    (config.folder / "conf").write_text("a = 1\n")
    assert config.state() == "app.service i2 stale\n"


def test_it_tells_who_reads_what(config: Config) -> None:
    lines = config.run("reads", "app.service", "never.service").splitlines()
    assert lines == [f"app.service {path}" for path in config.paths]


def test_an_unknown_command_is_refused(config: Config) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        config.run("mark", "app.service")
    assert refused.value.returncode == 2

"""Where the processors are emulated, everything that waits for a node waits longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import emulation
from lab.labfile import LabFile
from lab.providers import provider
from lab.render import Rendered, render, ssh_config


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    emulation.slowness.cache_clear()
    yield
    emulation.slowness.cache_clear()


def runs_on(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine be one whose systemd-detect-virt prints `what`."""
    program = folder / "systemd-detect-virt"
    program.write_text(f'#!/bin/sh\n[ "$*" = --vm ] && echo {what}\n[ {what} != none ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def lab_of(name: str) -> Rendered:
    file = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "slow", "provider": name}
    return render(LabFile.model_validate(file))


@pytest.mark.parametrize(("what", "factor"), [("qemu", 8), ("kvm", 1), ("vmware", 1), ("none", 1)])
def test_only_emulated_processors_are_slow(
    what: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(what, tmp_path, monkeypatch)
    assert emulation.slowness() == factor
    assert provider(lab_of("nspawn")).slowness == factor
    assert f"ConnectTimeout {5 * factor}\n" in ssh_config(lab_of("nspawn"))


def test_a_machine_is_waited_for_as_if_it_were_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on("none", tmp_path, monkeypatch)
    assert "ConnectTimeout 40\n" in ssh_config(lab_of("vagrant"))


def test_where_nobody_can_say_they_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert emulation.slowness() == 1

"""What the doctor makes of a host that shall run machines by VirtualBox."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from lab.doctor import subnets, virtualbox
from lab.errors import ExitCode, LabError
from lab.providers.vagrant import acceleration, vboxmanage
from lab.providers.vagrant.disks import Disks
from lab.providers.vagrant.virtualbox import VirtualBox
from lab.render import Rendered
from lab.run import Completed
from tests.fake_vboxmanage import MACHINES, NODE, WARNING, Told, lab_by_virtualbox, told_instead


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Told:
    return told_instead(monkeypatch)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rendered:
    return lab_by_virtualbox(monkeypatch, tmp_path)


@pytest.fixture
def host(lab: Rendered) -> VirtualBox:
    return VirtualBox(Disks(lab))


def test_the_guest_speaks_on_the_serial_line(
    program: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(acceleration, "SECONDS", 0.1)
    assert "said nothing" in acceleration.by_virtualbox()
    told = program.run

    def speak(argv: Sequence[Any], **how: Any) -> Completed:
        if "file" in argv:
            Path(argv[-1]).write_bytes(b"1")
        return told(argv, **how)

    monkeypatch.setattr(vboxmanage, "run", speak)
    assert acceleration.by_virtualbox() == ""
    assert program.done[-1].startswith("unregistervm underpass-doctor-")


def test_a_guest_that_does_not_start_is_told_with_its_reason_and_removed(
    program: Told, host: VirtualBox
) -> None:
    said = "VBoxManage: error: The virtual machine 'a' has terminated unexpectedly during startup\n"
    program.answer("startvm", (1, WARNING, said))
    seen = acceleration.by_virtualbox()
    assert "/dev/vboxdrv does not exist" in seen
    assert "terminated unexpectedly" in seen
    assert program.done[-1].startswith("unregistervm underpass-doctor-")
    with pytest.raises(LabError) as caught:
        host.driver()
    assert caught.value.code is ExitCode.HOST
    assert virtualbox.guest_of_virtualbox().status == "fail"


def test_guests_of_doctors_that_were_killed_are_removed(program: Told) -> None:
    program.answer("list vms", (0, MACHINES.replace(NODE, "underpass-doctor-4194305"), ""))
    acceleration._sweep()
    assert program.done[-1] == "unregistervm underpass-doctor-4194305 --delete"
    program.answer("list vms", (0, MACHINES.replace(NODE, "underpass-doctor-1"), ""))
    before = len(program.done)
    acceleration._sweep()
    assert len(program.done) == before, "its doctor is alive"


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("* 10.0.0.0/8 192.168.0.0/16\n* fe80::/10 fd00::/8\n", ["10.0.0.0/8", "192.168.0.0/16"]),
        ("# * 10.0.0.0/8\n\n10.0.0.0/8\n  * 0.0.0.0/0 ::/0\n", ["0.0.0.0/0"]),
        ("* nonsense\n", []),
    ],
)
def test_the_ranges_that_virtualbox_allows_are_read(text: str, networks: list[str]) -> None:
    assert virtualbox.read_ranges(text.splitlines()) == [IPv4Network(network) for network in networks]


def test_a_range_that_virtualbox_refuses_fails_with_the_line_to_write(
    lab: Rendered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(virtualbox, "RANGES", tmp_path / "vbox" / "networks.conf")
    found = virtualbox.judge_range(lab, virtualbox.allowed())
    assert found.status == "fail"
    subprocess.run(found.fix, shell=True, check=True)
    assert virtualbox.allowed() == [virtualbox.ITS_OWN, IPv4Network(lab.nodes_range)]
    assert virtualbox.judge_range(lab, virtualbox.allowed()).status == "ok"
    virtualbox.RANGES.write_text("* 10.0.0.0/30\n")
    subprocess.run(virtualbox.judge_range(lab, virtualbox.allowed()).fix, shell=True, check=True)
    assert virtualbox.judge_range(lab, virtualbox.allowed()).status == "ok"


@pytest.mark.parametrize(("of", "status"), [("virtualbox", "ok"), ("libvirt", "fail")])
def test_the_route_into_the_lab_itself_is_no_others(lab: Rendered, of: str, status: str) -> None:
    ends = [IPv4Network(lab.gateway), IPv4Network(lab.nodes_range)]
    routes = [subnets.Route(to, "vboxnet0") for to in ends]
    assert subnets.judge(dataclasses.replace(lab, hypervisor=of), routes, []).status == status


@pytest.mark.parametrize(
    ("says", "status"),
    [("exit 0", "ok"), ("echo Vagrant has detected that VirtualBox is not supported >&2; exit 1", "fail")],
)
def test_vagrant_itself_says_whether_it_takes_this_virtualbox(
    says: str,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: Callable[[str, str], None],
) -> None:
    script("vagrant", f'[ "$VAGRANT_DEFAULT_PROVIDER" = virtualbox ] || exit 9\n{says}')
    found = virtualbox.vagrant()
    assert found.status == status
    assert (status == "ok") or "not supported" in found.evidence


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a program of that name before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return write

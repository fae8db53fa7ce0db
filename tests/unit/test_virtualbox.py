"""VirtualBox, as far as no machine is started: what VBoxManage prints (7.2.22), and what it is told."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lab import emulation
from lab.builds import vboxbox
from lab.errors import ExitCode, LabError
from lab.paths import ROOT
from lab.providers.vagrant import Vagrant, settings, vboxmanage
from lab.providers.vagrant.acceleration import Acceleration
from lab.providers.vagrant.disks import Disks, management_range
from lab.providers.vagrant.hypervisor import ABSENT, OFF, PAUSED, RUNNING
from lab.providers.vagrant.virtualbox import VirtualBox
from lab.render import Rendered
from tests.fake_vboxmanage import (
    INFO,
    LINKS,
    LOCKED,
    MACHINES,
    NO_MACHINE,
    NO_SNAPSHOTS,
    NODE,
    SERVERS,
    SNAPSHOTS,
    WARNING,
    Told,
    lab_by_virtualbox,
    told_instead,
)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Told:
    return told_instead(monkeypatch)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rendered:
    return lab_by_virtualbox(monkeypatch, tmp_path)


@pytest.fixture
def host(lab: Rendered) -> VirtualBox:
    return VirtualBox(Disks(lab))


@pytest.fixture
def box(tmp_path: Path) -> Path:
    folder = tmp_path / "vm-box-virtualbox-0123456789abcdef"
    folder.mkdir()
    (folder / "underpass.box.sha256").write_text("00\n")
    return folder


# What it prints


def test_machines_and_their_fields_are_read_behind_a_warning() -> None:
    assert vboxmanage.read_machines(MACHINES) == {NODE: "2de2cf29-ea4c-465c-a41f-7ea7c33a6d68"}
    fields = vboxmanage.read_fields(INFO)
    assert (fields["name"], fields["memory"], fields["VMState"]) == (NODE, "2048", "poweroff")
    assert fields["disks-1-0"].endswith("identity-node-1.iso")


def test_snapshots_are_read_each_after_the_one_that_it_was_taken_on(program: Told) -> None:
    assert vboxmanage.read_snapshots(SNAPSHOTS) == ["one", "two", "three"]
    program.answer("snapshot", (1, NO_SNAPSHOTS, ""))
    assert vboxmanage.snapshots(NODE) == []


def test_links_are_found_by_their_address(program: Told) -> None:
    program.answer("list hostonlyifs", (0, LINKS.replace("GATEWAY", "10.135.1.1"), ""))
    assert vboxmanage.interface("10.135.1.1") == "vboxnet0"
    assert vboxmanage.interface("10.135.1.2") == ""
    program.answer("list hostonlyifs", (0, WARNING, ""))
    assert vboxmanage.interface("10.135.1.1") == ""


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *((word, OFF) for word in ("poweroff", "aborted", "restoringsnapshot")),
        *((word, RUNNING) for word in ("running", "starting", "stopping", "gurumeditation", "restoring")),
        *((word, PAUSED) for word in ("paused", "saved", "aborted-saved")),
    ],
)
def test_its_words_for_what_a_machine_does(program: Told, host: VirtualBox, word: str, state: str) -> None:
    program.does(word)
    assert host.state(NODE) == state


def test_a_machine_that_is_not_there_does_nothing(program: Told, host: VirtualBox) -> None:
    program.answer("showvminfo", (1, WARNING, NO_MACHINE))
    assert host.state("underpass-nothing") == ABSENT
    assert host.remove("underpass-nothing") == 0
    assert program.done == []


def test_machines_that_were_never_started_are_not_saved(program: Told, lab: Rendered) -> None:
    program.answer("showvminfo", (1, WARNING, NO_MACHINE))
    with pytest.raises(LabError, match="node-1 was never started"):
        Vagrant(lab).snapshot_save("prepared")
    assert program.done == []


def test_where_there_is_no_virtualbox_there_is_nothing_of_a_lab(
    lab: Rendered, host: VirtualBox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (host.state(NODE), host.machines(), host.leftovers()) == (ABSENT, set(), [])
    assert Vagrant(lab).destroy() == 0


# What it is told


def test_a_fault_says_what_was_tried_and_what_it_said(program: Told) -> None:
    program.answer("startvm", (1, "", "VBoxManage: error: no\n"))
    with pytest.raises(LabError, match="VBoxManage startvm failed with status 1") as caught:
        vboxmanage.manage("startvm", NODE)
    assert caught.value.code is ExitCode.NODE
    assert caught.value.details == [f"command: VBoxManage startvm {NODE}", "VBoxManage: error: no"]
    assert caught.value.hint


def test_a_machine_that_its_process_still_holds_is_asked_again(program: Told) -> None:
    program.answer("unregistervm", (1, "", LOCKED), (1, "", LOCKED), (0, "", ""))
    vboxmanage.manage("unregistervm", NODE)
    assert len(program.told) == 3


@pytest.mark.parametrize(
    ("word", "done"),
    [
        ("paused", f"controlvm {NODE} resume"),
        ("saved", f"startvm {NODE} --type headless"),
        ("aborted-saved", f"startvm {NODE} --type headless"),
    ],
)
def test_what_stands_still_goes_on_from_where_it_is(
    program: Told, host: VirtualBox, word: str, done: str
) -> None:
    program.does(word)
    host.resume(NODE)
    assert program.done == [done]


def test_power_is_cut_or_the_kept_memory_thrown_away(program: Told, host: VirtualBox) -> None:
    program.does("saved")
    host.power_off(NODE)
    program.answer("showvminfo", (0, INFO.replace("poweroff", "running"), ""), (0, INFO, ""))
    host.power_off(NODE)
    assert program.done == [f"discardstate {NODE}", f"controlvm {NODE} poweroff"]


def test_a_running_machine_is_reverted_off_and_then_stands_still(program: Told, host: VirtualBox) -> None:
    running = (0, INFO.replace("poweroff", "running"), "")
    program.answer("showvminfo", running, running, (0, INFO, ""))
    assert host.revert(NODE, "one") == 1
    assert program.done == [f"controlvm {NODE} poweroff", f"snapshot {NODE} restore one"]


def test_the_labs_machines_are_those_of_its_name_and_those_that_vagrant_noted(
    program: Told, host: VirtualBox, lab: Rendered
) -> None:
    other = MACHINES.replace("unit", "unit2").replace("2de2", "0000")
    imported = MACHINES.replace(NODE, "underpass-box_1795802082392_63977").replace("2de2", "1111")
    program.answer("list vms", (0, MACHINES + other + imported, ""))
    assert host.machines() == {NODE}
    note = Disks(lab).dot / "machines/node-2/virtualbox/id"
    note.parent.mkdir(parents=True)
    note.write_text("1111cf29-ea4c-465c-a41f-7ea7c33a6d68")
    assert host.machines() == {NODE, "underpass-box_1795802082392_63977"}


def document(lab: Rendered, box: Path) -> dict[str, Any]:
    return settings.document(lab, Disks(lab), box, Acceleration.VIRTUALBOX)


def test_a_network_with_the_nodes_range_is_made_once_and_has_no_dhcp(
    program: Told, host: VirtualBox, lab: Rendered, box: Path
) -> None:
    program.answer("hostonlyif create", (0, "Interface 'vboxnet0' was successfully created\n", "0%...100%\n"))
    program.answer("list dhcpservers", (0, SERVERS, ""))
    assert host.prepare(document(lab, box)) == 2
    assert program.done == [
        "hostonlyif create",
        f"hostonlyif ipconfig vboxnet0 --ip {lab.gateway} --netmask 255.255.255.0",
        "dhcpserver remove --network HostInterfaceNetworking-vboxnet0",
    ]
    program.answer("list hostonlyifs", (0, LINKS.replace("GATEWAY", lab.gateway), ""))
    program.answer("list dhcpservers", (0, WARNING, ""))
    assert host.prepare(document(lab, box)) == 0
    assert host.leftovers() == ["network vboxnet0"]
    assert host.clear() == 1
    assert program.done[3:] == ["hostonlyif remove vboxnet0"]


def test_a_network_whose_range_is_refused_is_not_left_there(
    program: Told, host: VirtualBox, lab: Rendered, box: Path
) -> None:
    refused = (
        "VBoxManage: error: Code E_ACCESSDENIED (0x80070005) - Access denied (extended info not available)\n"
    )
    program.answer("hostonlyif create", (0, "Interface 'vboxnet3' was successfully created\n", ""))
    program.answer("hostonlyif ipconfig", (1, WARNING, refused))
    with pytest.raises(LabError, match="hostonlyif failed"):
        host.prepare(document(lab, box))
    assert program.done[-1] == "hostonlyif remove vboxnet3"


# Settings and the box


def test_machines_of_virtualbox_get_disks_that_it_takes_and_a_nat_of_their_own(
    lab: Rendered, box: Path
) -> None:
    told = document(lab, box)
    assert (told["hypervisor"], told["driver"]) == ("virtualbox", "virtualbox")
    assert told["store"].endswith("store.iso")
    assert all(node["identity"].endswith(".iso") for node in told["nodes"])
    assert all(len(bytes.fromhex(node["base_mac"])) == 6 for node in told["nodes"])
    assert told["controller"] == {"name": "disks", "ports": [1, 2]}
    assert told["management"]["address"] == str(management_range(lab))
    assert Vagrant(lab).image == "vm-box-virtualbox"
    stock = dataclasses.replace(lab, box="debian/trixie64")
    assert document(stock, box)["controller"]["name"] == "SATA Controller"
    assert Vagrant(stock).image == "node-packages"


def test_on_a_host_that_is_emulated_itself_machines_are_waited_for_as_much_longer(
    lab: Rendered, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "slowness", lambda: 1.0)
    quick = document(lab, box)
    monkeypatch.setattr(emulation, "slowness", lambda: 8.0)
    slow = document(lab, box)
    assert slow["slowness"] == 8 * quick["slowness"]
    assert slow["boot_timeout"] > 7 * quick["boot_timeout"]


def test_a_lab_does_not_move_to_another_hypervisor(lab: Rendered, box: Path) -> None:
    disks = Disks(lab)
    disks.dot.mkdir(parents=True)
    disks.settings.write_text(json.dumps(document(lab, box)))
    Vagrant(lab)._refuse_another_hypervisor()
    moved = Vagrant(dataclasses.replace(lab, hypervisor="libvirt"))
    with pytest.raises(LabError, match="made with virtualbox, and the lab file now says libvirt"):
        moved._refuse_another_hypervisor()
    old = {name: value for name, value in document(lab, box).items() if name != "hypervisor"}
    disks.settings.write_text(json.dumps(old))
    assert Vagrant(lab)._host.name == "libvirt", "an older release wrote nothing, and knew no other"


def test_the_vagrantfile_is_a_program(lab: Rendered, box: Path) -> None:
    """And names a provider once, the one that the lab file says."""
    text = (ROOT / "Vagrantfile").read_text()
    assert [text.count(f"machine.vm.provider :{name}") for name in ("libvirt", "virtualbox")] == [1, 1]
    assert text.index('when "virtualbox"') < text.index("machine.vm.provider :virtualbox")


def test_what_is_exported_becomes_a_box(tmp_path: Path) -> None:
    files = [tmp_path / "box.ovf", tmp_path / "underpass-box-disk001.vmdk"]
    for file in files:
        file.write_text(file.name)
    vboxbox.pack(files, tmp_path, tmp_path)
    packed = tmp_path / "underpass.box"
    with tarfile.open(packed) as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", *(file.name for file in files)]
        note = archive.extractfile("metadata.json")
        assert note and json.load(note) == {"provider": "virtualbox"}
    digest = (tmp_path / "underpass.box.sha256").read_text().strip()
    assert digest == hashlib.sha256(packed.read_bytes()).hexdigest()

"""Virtual machines, as far as no machine is needed: settings, guests' verdicts, disks' identities."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from lab import render as rendering
from lab.doctor import virtual
from lab.errors import LabError
from lab.labfile import LabFile
from lab.providers.base import STORE_ON_NODE
from lab.providers.vagrant import Vagrant, acceleration, settings, virsh
from lab.providers.vagrant.acceleration import Acceleration, Tried
from lab.providers.vagrant.disks import Disks, management_mac, management_range, network
from lab.render import Rendered
from lab.run import Completed


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rendered:
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    data = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "unit", "provider": "vagrant"}
    return rendering.render(LabFile.model_validate(data))


@pytest.fixture
def box(tmp_path: Path) -> Path:
    folder = tmp_path / "vm-box-0123456789abcdef"
    folder.mkdir()
    (folder / "underpass.box.sha256").write_text("00\n")
    return folder


@pytest.mark.parametrize(
    ("said", "safe"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n", False),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n", True),
        ("something else\n", False),
    ],
)
def test_an_emulator_that_gets_an_instruction_wrong_does_not_offer_it(
    monkeypatch: pytest.MonkeyPatch, said: str, safe: bool
) -> None:
    monkeypatch.setattr(acceleration, "run", lambda argv, **_: Completed(argv, 0, said, ""))
    assert ("max-x86_64-cpu.cx16=off" not in settings.qemu_arguments()) == safe


def test_emulated_machines_get_few_processors_and_longer_waits(lab: Rendered, box: Path) -> None:
    slow = settings.document(lab, Disks(lab), box, Acceleration.EMULATION)
    quick = settings.document(lab, Disks(lab), box, Acceleration.KVM)
    assert [node["cpus"] for node in slow["nodes"]] == [min(2, os.cpu_count() or 1), 1]
    assert slow["boot_timeout"] > quick["boot_timeout"]
    assert (slow["driver"], slow["cpu_mode"]) == ("qemu", "maximum")
    assert (quick["driver"], quick["cpu_mode"]) == ("kvm", "host-passthrough")
    for feature in ("erms", "fsrm", "la57"):
        assert f"max-x86_64-cpu.{feature}=off" in slow["qemu_arguments"]
    assert quick["qemu_arguments"] == []


def test_the_box_is_called_after_its_key(lab: Rendered, box: Path) -> None:
    document = settings.document(lab, Disks(lab), box, Acceleration.KVM)
    assert document["box"] == "underpass-0123456789abcdef"


def test_a_box_by_name_comes_from_vagrant_and_is_adopted(lab: Rendered, tmp_path: Path) -> None:
    stock = dataclasses.replace(lab, box="debian/trixie64")
    image = tmp_path / "node-packages-0123456789abcdef"
    document = settings.document(stock, Disks(stock), image, Acceleration.KVM)
    assert (document["box"], document["box_file"]) == ("debian/trixie64", None)
    assert f"{STORE_ON_NODE}/{image.name}/adopt" in document["adopt"]
    assert Vagrant(stock).image == "node-packages"


def test_the_labs_own_box_is_not_adopted(lab: Rendered, box: Path) -> None:
    document = settings.document(lab, Disks(lab), box, Acceleration.KVM)
    assert document["adopt"] is None
    assert Vagrant(lab).image == "vm-box"


def test_machines_stay_with_the_box_that_they_were_made_from(
    lab: Rendered, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virsh, "state", lambda machine: "shut off")
    before = settings.document(lab, Disks(lab), box, Acceleration.KVM)
    Vagrant(lab)._refuse_another_box(before, lab.nodes)
    stock = Vagrant(dataclasses.replace(lab, box="debian/trixie64"))
    with pytest.raises(
        LabError, match="made from the lab's own box, and the lab file now says debian/trixie64"
    ):
        stock._refuse_another_box(before, lab.nodes)
    monkeypatch.setattr(virsh, "state", lambda machine: "")
    stock._refuse_another_box(before, lab.nodes)


def test_no_address_or_link_is_given_twice(lab: Rendered, box: Path) -> None:
    document = settings.document(lab, Disks(lab), box, Acceleration.KVM)
    links = [node[key].replace(":", "") for node in document["nodes"] for key in ("mac", "management_mac")]
    assert len(set(links)) == len(links) == 4
    assert all(int(mac[:2], 16) & 1 == 0 for mac in links), "a group address"
    assert str(management_range(lab)) != lab.nodes_range
    assert management_mac(lab.nodes[0]) != lab.nodes[0].mac


def test_a_node_gets_its_address_and_no_way_out(lab: Rendered) -> None:
    text = network(lab, lab.nodes[1])["etc/systemd/network/10-nodes.network"]
    assert f"Address={lab.nodes[1].address}/{lab.prefix_length}" in text
    assert f"MACAddress={lab.nodes[1].mac}" in text
    assert "Gateway" not in text


@pytest.mark.parametrize(
    ("tried", "best", "status"),
    [
        (Tried("", ""), Acceleration.KVM, "ok"),
        (Tried("it hung", ""), Acceleration.EMULATION, "warn"),
        (Tried("it hung", "no program"), None, "fail"),
    ],
)
def test_what_ran_decides(tried: Tried, best: Acceleration | None, status: str) -> None:
    assert tried.best == best
    seen = virtual.judge(tried)
    assert seen.status == status
    assert (status == "ok") or (seen.cause and seen.fix)


def test_a_guest_that_says_nothing_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "QEMU", "false")
    assert acceleration.tried().best is None
    monkeypatch.setattr(acceleration, "QEMU", "no-such-program")
    assert acceleration.tried().best is None


def test_the_guest_is_a_boot_sector() -> None:
    sector = acceleration.boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"

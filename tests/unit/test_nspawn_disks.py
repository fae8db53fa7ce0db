"""Disks, what is laid into them, and their snapshots; on plain folders, as an ordinary user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab.errors import ExitCode, LabError
from lab.labfile import LabFile
from lab.providers.identity import HOST_KEY
from lab.providers.nspawn import identity, settings
from lab.providers.nspawn.disks import Disks, Made
from lab.providers.nspawn.layer import Layer
from lab.providers.nspawn.snapshots import Snapshots
from lab.render import Rendered, render


@pytest.fixture
def lab(tmp_path: Path) -> Rendered:
    """A lab of two nodes whose folder is a fresh one, with keys of no worth."""
    file = LabFile.model_validate({"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "unit"})
    lab = replace(render(file), home=str(tmp_path / "lab"))
    for node in lab.nodes:
        host = lab.folder / "keys" / "hosts" / node.name
        host.mkdir(parents=True)
        (host / HOST_KEY).write_text(f"key of {node.name}")
        (host / f"{HOST_KEY}.pub").write_text(f"public key of {node.name}")
    (lab.folder / "keys" / "ssh.pub").write_text("the lab's public key")
    return lab


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of some folders."""
    image = tmp_path / "store" / "node-image-1"
    for folder, mode in (("etc/ssh", 0o755), ("root", 0o700), ("opt/shut", 0o711)):
        (image / "rootfs" / folder).mkdir(parents=True)
        (image / "rootfs" / folder).chmod(mode)
    return image


def test_a_disk_is_made_once(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    assert not disks.there("node-1")
    assert disks.make("node-1", image) == 1
    assert disks.there("node-1")
    assert disks.image("node-1") == image
    assert disks.make("node-1", image) == 0


def test_the_nodes_root_directory_can_be_entered_by_all(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    disks.make("node-1", image)
    assert disks.upper("node-1").stat().st_mode & 0o777 == 0o755


def test_a_disk_moves_to_a_new_image_and_keeps_its_changes(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    disks.make("node-1", image)
    (disks.upper("node-1") / "kept").write_text("mine")
    newer = image.with_name("node-image-2")
    (newer / "rootfs").mkdir(parents=True)
    assert disks.make("node-1", newer) == 1
    assert disks.image("node-1") == newer
    assert (disks.upper("node-1") / "kept").read_text() == "mine"


def test_what_is_not_an_image_is_refused(lab: Rendered, tmp_path: Path) -> None:
    with pytest.raises(LabError) as refused:
        Disks(lab).make("node-1", tmp_path)
    assert refused.value.code is ExitCode.ARTIFACT
    assert not Disks(lab).there("node-1")


def test_an_image_that_left_the_store_is_named(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    disks.make("node-1", image)
    image.rename(image.with_name("elsewhere"))
    with pytest.raises(LabError, match="no longer in the store: node-image-1"):
        disks.image("node-1")


def test_what_was_made_is_remembered_as_it_was_rendered(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    assert disks.made() is None
    made = Made({node.name: node for node in lab.nodes}, image.parent)
    assert disks.remember(made) == 1
    assert disks.made() == made
    assert disks.remember(made) == 0


def test_a_node_is_given_its_name_its_keys_and_its_fellows(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    disks.make("node-1", image)
    upper = disks.upper("node-1")
    assert identity.write(lab, lab.nodes[0], image / "rootfs", upper) > 0
    assert (upper / "etc/hostname").read_text() == "node-1\n"
    assert (upper / "etc/ssh/ssh_host_ed25519_key").read_text() == "key of node-1"
    assert (upper / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (upper / "root/.ssh/authorized_keys").read_text() == "the lab's public key"
    assert (upper / "root/.ssh").stat().st_mode & 0o777 == 0o700
    for node in lab.nodes:
        assert f"{node.address} {node.name}" in (upper / "etc/hosts").read_text().splitlines()
    assert identity.write(lab, lab.nodes[0], image / "rootfs", upper) == 0


def test_a_node_keeps_its_machine_id_and_what_it_wrote_into_hosts(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    ids = []
    for node in lab.nodes:
        disks.make(node.name, image)
        upper = disks.upper(node.name)
        identity.write(lab, node, image / "rootfs", upper)
        ids.append((upper / "etc/machine-id").read_text())
        (upper / "etc/hosts").write_text("mine\n")
        identity.write(lab, node, image / "rootfs", upper)
        assert (upper / "etc/machine-id").read_text() == ids[-1]
        assert (upper / "etc/hosts").read_text() == "mine\n"
    assert ids[0] != ids[1]


def test_a_changed_key_reaches_the_node_at_its_next_start(lab: Rendered, image: Path) -> None:
    disks = Disks(lab)
    disks.make("node-1", image)
    upper = disks.upper("node-1")
    identity.write(lab, lab.nodes[0], image / "rootfs", upper)
    (lab.folder / "keys" / "ssh.pub").write_text("another")
    assert identity.write(lab, lab.nodes[0], image / "rootfs", upper) == 1
    assert (upper / "root/.ssh/authorized_keys").read_text() == "another"


def test_missing_keys_are_a_fault_that_says_how_to_make_them(lab: Rendered, image: Path) -> None:
    (lab.folder / "keys" / "ssh.pub").unlink()
    disks = Disks(lab)
    disks.make("node-1", image)
    with pytest.raises(LabError, match=r"ssh\.pub is missing") as missing:
        identity.write(lab, lab.nodes[0], image / "rootfs", disks.upper("node-1"))
    assert missing.value.hint


def test_a_link_in_the_layer_leads_no_write_out_of_it(image: Path, tmp_path: Path) -> None:
    upper, outside = tmp_path / "upper", tmp_path / "outside"
    (upper / "etc").mkdir(parents=True)
    outside.write_text("the host's")
    (upper / "etc/hostname").symlink_to(outside)
    Layer(image / "rootfs", upper).file("etc/hostname", b"node\n", 0o644)
    assert outside.read_text() == "the host's"
    assert not (upper / "etc/hostname").is_symlink()


def test_a_directory_that_became_a_link_is_refused(image: Path, tmp_path: Path) -> None:
    upper, outside = tmp_path / "upper", tmp_path / "outside"
    upper.mkdir()
    outside.mkdir()
    (upper / "etc").symlink_to(outside)
    with pytest.raises(LabError, match="not a directory"):
        Layer(image / "rootfs", upper).file("etc/hostname", b"node\n", 0o644)
    assert list(outside.iterdir()) == []


def test_a_new_directory_has_the_mode_that_the_image_gives_it(image: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    Layer(image / "rootfs", upper).file("opt/shut/file", b"", 0o600)
    assert (upper / "opt/shut").stat().st_mode & 0o777 == 0o711
    assert Layer(image / "rootfs", upper).link("opt/shut/link", "file") == 1
    assert Layer(image / "rootfs", upper).link("opt/shut/link", "file") == 0


def test_every_setting_shown_has_its_file() -> None:
    files = settings.files()
    for name, value in settings.WANTED.items():
        assert files[f"usr/lib/underpass/settings/{name}"] == (f"{value}\n".encode(), 0o444)
    assert all(not path.startswith("/") for path in (*files, *settings.links()))


@pytest.fixture
def saved(lab: Rendered, image: Path) -> Disks:
    """Two disks with a snapshot `before`, written to after it."""
    disks = Disks(lab)
    for node in lab.nodes:
        disks.make(node.name, image)
        (disks.upper(node.name) / "state").write_text("old")
    assert Snapshots(disks).save("before") == 1
    for node in lab.nodes:
        (disks.upper(node.name) / "state").write_text("new")
        (disks.upper(node.name) / "more").write_text("new")
    return disks


def test_a_snapshot_puts_the_disks_of_all_nodes_back(saved: Disks) -> None:
    assert Snapshots(saved).restore("before") == 1
    for name in ("node-1", "node-2"):
        assert (saved.upper(name) / "state").read_text() == "old"
        assert not (saved.upper(name) / "more").exists()


def test_a_snapshot_can_be_restored_more_than_once(saved: Disks) -> None:
    snapshots = Snapshots(saved)
    snapshots.restore("before")
    (saved.upper("node-1") / "state").write_text("newer")
    snapshots.restore("before")
    assert (saved.upper("node-1") / "state").read_text() == "old"


def test_snapshots_are_listed_oldest_first_and_can_be_deleted(saved: Disks) -> None:
    snapshots = Snapshots(saved)
    snapshots.save("after")
    snapshots.save("a-third")
    assert snapshots.names() == ["before", "after", "a-third"]
    assert snapshots.delete("after") == 1
    assert snapshots.names() == ["before", "a-third"]


def test_a_copy_that_was_cut_short_is_no_snapshot_and_is_cleared_away(saved: Disks) -> None:
    half = saved.top / ".stage-save"
    (half / "disks" / "node-1").mkdir(parents=True)
    snapshots = Snapshots(saved)
    assert snapshots.names() == ["before"]
    snapshots.save("after")
    assert not list(saved.top.glob(".stage-*"))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "Upper", "-x", "x" * 65])
def test_a_name_that_could_lead_elsewhere_is_refused(saved: Disks, name: str) -> None:
    with pytest.raises(LabError, match="not a name"):
        Snapshots(saved).save(name)


def test_a_snapshot_is_never_overwritten(saved: Disks) -> None:
    with pytest.raises(LabError, match="already a snapshot before"):
        Snapshots(saved).save("before")


def test_restoring_what_was_not_saved_names_what_was(saved: Disks) -> None:
    with pytest.raises(LabError, match="no snapshot other") as refused:
        Snapshots(saved).restore("other")
    assert refused.value.hint == "saved: before"
    assert refused.value.code is ExitCode.NOT_THERE

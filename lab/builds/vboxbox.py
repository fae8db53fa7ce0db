"""The box for VirtualBox: the disk of `vm-box`, and around it a machine that VirtualBox itself wrote down.

The machine is made for it by a VirtualBox with settings and a daemon of its own, and exported. So the box
is as this host's VirtualBox likes it, and nobody's machines are touched. Nothing is started.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from lab.builds.contained import enclosed
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode
from lab.run import run
from lab.store import Building, Recipe

NAME = "vm-box-virtualbox"
#: What the disks hang on; this one is on the first port.
CONTROLLER = "disks"
#: What the machine is called while Vagrant imports it, with a number behind.
MACHINE = "underpass-box"
HINT = "VirtualBox makes this box: `lab doctor` looks at it, for a lab file with `hypervisor: virtualbox`"
SECONDS = 1800.0

#: Older Vagrants want a hardware address of every box; the project's Vagrantfile gives each machine its own.
VAGRANTFILE = 'Vagrant.configure("2") { |config| config.vm.base_mac = "080027000001" }\n'
METADATA = {"provider": "virtualbox"}

#: The box's kernel has drivers for AHCI and virtio, and for no other disk or network card of VirtualBox's.
_EXPORT = """
VBoxManage createvm --name "$1" --ostype Debian_64 --basefolder "$VBOX_USER_HOME" --register
VBoxManage modifyvm "$1" --memory 2048 --ioapic on --rtcuseutc on --usb off --vram 8
VBoxManage modifyvm "$1" --nic1 nat --nictype1 virtio
VBoxManage modifyvm "$1" --boot1 disk --boot2 none --boot3 none --boot4 none
VBoxManage storagectl "$1" --name "$2" --add sata --portcount 4
VBoxManage storageattach "$1" --storagectl "$2" --port 0 --device 0 --type hdd --medium "$3"
VBoxManage export "$1" --output "$4"
"""


def recipe(machine: Recipe) -> Recipe:
    """`machine` is the box for libvirt, whose disk it shares."""
    return Recipe(
        name=NAME,
        title="Box for virtual machines of VirtualBox",
        inputs={"box": machine.key, "files": tree_digest(Path(__file__))},
        build=_build,
        needs=(machine.name,),
        space=6 << 30,
        provider="vagrant",
        on_request=True,
    )


def _build(building: Building) -> None:
    building.folder.chmod(0o700)
    (machine,) = building.needs.values()
    building.step.say("unpacking the disk")
    disk = unpack(machine.path / "underpass.box", building.scratch)
    building.step.say("letting VirtualBox write the machine down")
    files = export(disk, building.scratch)
    building.step.say("packing the box")
    pack(files, building.folder, building.scratch)
    building.tools["VBoxManage"] = run(["VBoxManage", "--version"]).stdout.split()[-1]
    building.tools["qemu-img"] = run(["qemu-img", "--version"]).stdout.split()[2]


def unpack(box: Path, scratch: Path) -> Path:
    """The disk of a box for libvirt, in VirtualBox's own form."""
    packed, disk = scratch / "box.img", scratch / "disk.vdi"
    with tarfile.open(box) as archive:
        archive.extract(packed.name, scratch, filter="data")
    run(
        ["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "vdi", packed, disk],
        hint="`make setup VMS=1` installs qemu-img",
        code=ExitCode.ARTIFACT,
    )
    packed.unlink()
    return disk


def export(disk: Path, scratch: Path) -> list[Path]:
    """A machine with that disk, as VirtualBox writes it down: its description, and the disk packed."""
    into = scratch / "exported"
    into.mkdir()
    socket = f"underpass-build-{os.getpid()}"
    try:
        run(
            enclosed(["sh", "-e", "-c", _EXPORT, "export", MACHINE, CONTROLLER, disk, into / "box.ovf"]),
            env={"VBOX_USER_HOME": str(scratch / "virtualbox"), "VBOX_IPC_SOCKETID": socket},
            timeout=SECONDS,
            hint=HINT,
            code=ExitCode.ARTIFACT,
        )
    finally:
        shutil.rmtree(f"/tmp/.vbox-{socket}-ipc", ignore_errors=True)  # noqa: S108 - where VirtualBox has it
    return [into / "box.ovf", *sorted(into.glob("*.vmdk"))]


def pack(files: Sequence[Path], folder: Path, scratch: Path) -> None:
    """What was exported in a Vagrant box, which is a tar archive with a note on what is in it."""
    notes = {"metadata.json": json.dumps(METADATA) + "\n", "Vagrantfile": VAGRANTFILE}
    for name, text in notes.items():
        (scratch / name).write_text(text, encoding="utf-8")
    packed = folder / "underpass.box"
    with tarfile.open(packed, "w", format=tarfile.USTAR_FORMAT) as box:
        for source in (*(scratch / name for name in notes), *files):
            entry = box.gettarinfo(str(source), arcname=source.name)
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "root", "root"
            entry.mode = 0o644
            with source.open("rb") as file:
                box.addfile(entry, file)
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / "underpass.box.sha256").write_text(f"{digest}\n", encoding="ascii")

"""VBoxManage as 7.2.22 answers, shortened, with other names; it remembers what it was told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab import render as rendering
from lab.labfile import LabFile
from lab.providers.vagrant import vboxmanage
from lab.render import Rendered
from lab.run import Completed

WARNING = """\
WARNING: The character device /dev/vboxdrv does not exist.
\t Please install the virtualbox-dkms package and the appropriate
\t headers, most likely linux-headers-amd64.

\t You will not be able to start VMs until this problem is fixed.
"""
MACHINES = WARNING + '"underpass-unit.node-1" {2de2cf29-ea4c-465c-a41f-7ea7c33a6d68}\n'
INFO = f"""\
{WARNING}name="underpass-unit.node-1"
encryption="disabled"
ostype="Debian (64-bit)"
UUID="2de2cf29-ea4c-465c-a41f-7ea7c33a6d68"
CfgFile="/root/VirtualBox VMs/underpass-unit.node-1/underpass-unit.node-1.vbox"
memory=2048
VMState="poweroff"
VMStateChangeTime="2026-11-27T17:14:15.000000000"
storagecontrollername0="disks"
"disks-1-0"="/var/lib/libvirt/underpass/unit/identity-node-1.iso"
uart1="0x03f8,4"
 rec_screen0
rec_screen_enabled="on"
"""
NO_MACHINE = """\
VBoxManage: error: Could not find a registered machine named 'underpass-nothing'
VBoxManage: error: Details: code VBOX_E_OBJECT_NOT_FOUND (0x80bb0001), component VirtualBoxWrap, interface \
IVirtualBox, callee nsISupports
"""
NO_SNAPSHOTS = WARNING + "This machine does not have any snapshots\n"
SNAPSHOTS = f"""\
{WARNING}SnapshotName="one"
SnapshotUUID="f4fa71c1-ee30-4eca-bc54-0945ea2b45ee"
SnapshotName-1="two"
SnapshotUUID-1="ab3ad46e-e4b0-405f-aa9b-043335cb5e88"
SnapshotName-2="three"
SnapshotUUID-2="07eaffea-9995-4456-8b29-f2bf8b7f439b"
CurrentSnapshotName="three"
CurrentSnapshotUUID="07eaffea-9995-4456-8b29-f2bf8b7f439b"
CurrentSnapshotNode="SnapshotName-2"
"""
LINKS = f"""\
{WARNING}Name:            vboxnet0
GUID:            f0000366-dae8-4abf-8000-4e108668a47c
DHCP:            Disabled
IPAddress:       GATEWAY
NetworkMask:     255.255.255.0
IPV6Address:     fe80::4c10:86ff:fe68:a47c
IPV6NetworkMaskPrefixLength: 64
HardwareAddress: 4e:10:86:68:a4:7c
MediumType:      Ethernet
Wireless:        No
Status:          Up
VBoxNetworkName: HostInterfaceNetworking-vboxnet0

"""
SERVERS = f"""\
{WARNING}NetworkName:    HostInterfaceNetworking-vboxnet0
Dhcpd IP:       192.168.56.100
LowerIPAddress: 192.168.56.101
UpperIPAddress: 192.168.56.254
NetworkMask:    255.255.255.0
Enabled:        Yes
Global Configuration:
    minLeaseTime:     default
        1/legacy: 255.255.255.0
Groups:               None
Individual Configs:   None
"""
LOCKED = "VBoxManage: error: The machine 'a' is already locked for a session (or being unlocked)\n"
NODE = "underpass-unit.node-1"

Answer = tuple[int, str, str]


class Told:
    """A VBoxManage that answers by the first words, and remembers what it was told."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.told: list[str] = []

    def answer(self, words: str, *answers: Answer) -> None:
        """The last of `answers` stays."""
        self.answers[words] = list(answers)

    def does(self, word: str) -> None:
        self.answer("showvminfo", (0, INFO.replace("poweroff", word), ""))

    def run(self, argv: Sequence[Any], **_: Any) -> Completed:
        program, *words = (str(word) for word in argv)
        assert program == "VBoxManage"
        said = " ".join(words)
        self.told.append(said)
        found = next(
            (answers for first, answers in self.answers.items() if said.startswith(first)), [(0, "", "")]
        )
        status, out, err = found.pop(0) if len(found) > 1 else found[0]
        return Completed((program, *words), status, out, err)

    @property
    def done(self) -> list[str]:
        """What it was told that was no question."""
        return [
            said for said in self.told if not said.startswith(("list", "showvminfo")) and " list" not in said
        ]


def told_instead(monkeypatch: pytest.MonkeyPatch) -> Told:
    """One that is asked instead of the host's."""
    told = Told()
    monkeypatch.setattr(vboxmanage, "run", told.run)
    return told


def lab_by_virtualbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rendered:
    """A lab whose machines VirtualBox runs, with all that is kept of it in a folder of the test's."""
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    monkeypatch.setattr("lab.providers.vagrant.disks.TOP", tmp_path / "top")
    data = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "unit", "provider": "vagrant"}
    return rendering.render(LabFile.model_validate({**data, "machines": {"hypervisor": "virtualbox"}}))

"""The machines of a lab by VirtualBox.

They are registered with the VirtualBox of the user that `lab` runs as, which is root, and kept where that
one keeps machines. A machine's first link is VirtualBox's NAT, by which Vagrant finds it; the second is in
a host-only network with the range of the lab's nodes. Its daemon comes and goes by itself.
"""

from __future__ import annotations

from typing import Any

from lab.emulation import slowness
from lab.errors import ExitCode, die
from lab.providers.vagrant import acceleration, vboxmanage
from lab.providers.vagrant.disks import Disks
from lab.providers.vagrant.hypervisor import ABSENT, OFF, PAUSED, RUNNING
from lab.retry import until

OFF_SECONDS = 30.0
#: VirtualBox's words for a machine whose memory is in a file, and for one that is off or being mended so.
_SAVED = {"saved", "aborted-saved"}
_OFF = {
    "poweroff",
    "aborted",
    "teleported",
    "deletingsnapshot",
    "restoringsnapshot",
    "settingup",
    "snapshotting",
}


class VirtualBox:
    """A `Hypervisor`: what VBoxManage tells and does of the lab's machines and its network."""

    name = "virtualbox"
    image = "vm-box-virtualbox"

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._lab = disks.lab

    def driver(self) -> acceleration.Acceleration:
        if seen := acceleration.by_virtualbox():
            die(
                "this host runs no virtual machine by VirtualBox",
                details=[seen],
                hint="`lab doctor` shows what was seen; `hypervisor: libvirt` needs none",
                code=ExitCode.HOST,
            )
        return acceleration.Acceleration.VIRTUALBOX

    def ensure(self) -> int:
        return 0

    def stop_if_idle(self) -> int:
        return 0

    def prepare(self, document: dict[str, Any]) -> int:
        ours, changed = document["network"], 0
        link = vboxmanage.interface(ours["gateway"])
        if not link:
            link = vboxmanage.create_interface(ours["gateway"], ours["netmask"])
            changed = 1
        return changed + vboxmanage.remove_dhcp(link)

    def clear(self) -> int:
        link = vboxmanage.interface(self._lab.gateway)
        if link:
            vboxmanage.manage("hostonlyif", "remove", link)
        return int(bool(link))

    def leftovers(self) -> list[str]:
        link = vboxmanage.interface(self._lab.gateway)
        return [f"network {link}"] if link else []

    def machines(self) -> set[str]:
        """By their names, and those that Vagrant had imported but not yet named, by what it noted."""
        noted = {file.read_text("utf-8").strip() for file in self._disks.dot.glob("machines/*/virtualbox/id")}
        mine = f"underpass-{self._lab.id}."
        return {name for name, id_ in vboxmanage.machines().items() if name.startswith(mine) or id_ in noted}

    def state(self, machine: str) -> str:
        word = vboxmanage.state(machine)
        if not word:
            return ABSENT
        if word == "paused" or word in _SAVED:
            return PAUSED
        return OFF if word in _OFF else RUNNING  # a guest that hangs, too: it is started again

    def suspend(self, machine: str) -> None:
        vboxmanage.manage("controlvm", machine, "pause")

    def resume(self, machine: str, *, strict: bool = True) -> None:
        ok = (0,) if strict else range(256)
        if vboxmanage.state(machine) in _SAVED:
            vboxmanage.manage("startvm", machine, "--type", "headless", ok=ok)
        else:
            vboxmanage.manage("controlvm", machine, "resume", ok=ok)

    def power_off(self, machine: str) -> None:
        if vboxmanage.state(machine) in _SAVED:
            vboxmanage.manage("discardstate", machine, ok=range(256))
        else:
            vboxmanage.manage("controlvm", machine, "poweroff", ok=range(256))
            until(lambda: self.state(machine) in (OFF, ABSENT), OFF_SECONDS * slowness())

    def remove(self, machine: str) -> int:
        if not self.state(machine):
            return 0
        self.power_off(machine)
        vboxmanage.manage("unregistervm", machine, "--delete")
        return 1

    def snapshots(self, machine: str) -> list[str]:
        return vboxmanage.snapshots(machine)

    def revert(self, machine: str, snapshot: str) -> int:
        """Its memory is then in a file: `resume` brings it back from there."""
        if self.state(machine) not in (OFF, ABSENT):
            self.power_off(machine)
        vboxmanage.manage("snapshot", machine, "restore", snapshot)
        return 1

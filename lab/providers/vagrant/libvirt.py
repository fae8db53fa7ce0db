"""The machines of a lab by libvirt and QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.errors import ExitCode, die
from lab.providers.vagrant import acceleration, daemons, settings, virsh
from lab.providers.vagrant.disks import Disks


class Libvirt:
    """A `Hypervisor`: what virsh tells and does of the lab's domains, networks and pool."""

    name = "libvirt"
    image = "vm-box"

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._lab = disks.lab

    def driver(self) -> acceleration.Acceleration:
        seen = acceleration.tried()
        if seen.best is None:
            die(
                "this host runs no virtual machine, neither by KVM nor by emulation",
                hint="`lab doctor` shows what was seen",
                code=ExitCode.HOST,
            )
        return seen.best

    def ensure(self) -> int:
        return daemons.ensure()

    def stop_if_idle(self) -> int:
        return daemons.stop_if_idle()

    def prepare(self, document: dict[str, Any]) -> int:
        ours, theirs = document["network"], document["management"]
        changed = virsh.define_network(ours["name"], ours["bridge"], ours["gateway"], ours["netmask"], None)
        changed += virsh.define_network(
            theirs["name"],
            settings.management_bridge(self._lab),
            theirs["gateway"],
            theirs["netmask"],
            (theirs["first"], theirs["last"]),
        )
        return changed + virsh.define_pool(settings.pool(self._lab), self._disks.pool)

    def clear(self) -> int:
        changed = sum(virsh.remove_network(name) for name in self._networks())
        return changed + virsh.remove_pool(settings.pool(self._lab))

    def leftovers(self) -> list[str]:
        lines = [f"network {name}" for name in virsh.names("net-list") & set(self._networks())]
        lines += [f"pool {name}" for name in virsh.names("pool-list") & {settings.pool(self._lab)}]
        bridges = (self._lab.uplink, settings.management_bridge(self._lab))
        return lines + [f"link {name}" for name in bridges if Path("/sys/class/net", name).exists()]

    def machines(self) -> set[str]:
        return {name for name in virsh.names("list") if name.startswith(f"underpass-{self._lab.id}.")}

    def state(self, machine: str) -> str:
        return virsh.state(machine)

    def suspend(self, machine: str) -> None:
        virsh.virsh("suspend", machine)

    def resume(self, machine: str, *, strict: bool = True) -> None:
        virsh.virsh("resume", machine, ok=(0,) if strict else range(256))

    def power_off(self, machine: str) -> None:
        virsh.virsh("destroy", machine, ok=range(256))

    def remove(self, machine: str) -> int:
        return virsh.remove_domain(machine)

    def snapshots(self, machine: str) -> list[str]:
        return virsh.snapshots(machine)

    def revert(self, machine: str, snapshot: str) -> int:
        return virsh.revert(machine, snapshot)

    def _networks(self) -> tuple[str, str]:
        return self._lab.switch, settings.management(self._lab)

"""libvirt, asked and told by virsh: what is there of a lab, and what Vagrant leaves to others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.errors import ExitCode, LabError
from lab.run import Completed, run

URI = "qemu:///system"
SECONDS = 120.0


def virsh(*arguments: str | Path, ok: Sequence[int] = (0,), stdin: str | None = None) -> Completed:
    return run(
        ["virsh", "-q", "-c", URI, *arguments],
        ok=ok,
        stdin=stdin,
        timeout=SECONDS,
        hint="`lab doctor` looks at libvirt",
        code=ExitCode.NODE,
    )


def names(kind: str) -> set[str]:
    """The names of all domains (`list`), networks (`net-list`) or pools (`pool-list`), active or not."""
    try:
        return set(virsh(kind, "--all", "--name", ok=range(256)).stdout.split())
    except LabError:
        return set()


def state(domain: str) -> str:
    """`running`, `paused`, `shut off`...; empty if there is no such domain."""
    try:
        done = virsh("domstate", domain, ok=range(256))
    except LabError:
        return ""
    return done.stdout.strip() if done.status == 0 else ""


def define_network(name: str, bridge: str, address: str, netmask: str, leases: tuple[str, str] | None) -> int:
    """An isolated network: a bridge with the host's address, no way out, and DHCP only if asked for."""
    if name in names("net-list"):
        changed = 0
    else:
        dhcp = f"<dhcp><range start='{leases[0]}' end='{leases[1]}'/></dhcp>" if leases else ""
        dns = "" if leases else "<dns enable='no'/>"
        virsh(
            "net-define",
            "/dev/stdin",
            stdin=f"<network><name>{name}</name><bridge name='{bridge}' stp='off' delay='0'/>{dns}"
            f"<ip address='{address}' netmask='{netmask}'>{dhcp}</ip></network>",
        )
        changed = 1
    if "active: yes" not in " ".join(virsh("net-info", name).stdout.lower().split()):
        virsh("net-start", name)
        changed = 1
    return changed


def remove_network(name: str) -> int:
    if name not in names("net-list"):
        return 0
    virsh("net-destroy", name, ok=range(256))
    virsh("net-undefine", name)
    return 1


def define_pool(name: str, folder: Path) -> int:
    """A folder of disks."""
    if name in names("pool-list"):
        changed = 0
    else:
        virsh("pool-define-as", name, "dir", "--target", folder)
        changed = 1
    if "state: running" not in " ".join(virsh("pool-info", name).stdout.lower().split()):
        virsh("pool-start", name)
        changed = 1
    return changed


def remove_pool(name: str) -> int:
    if name not in names("pool-list"):
        return 0
    virsh("pool-destroy", name, ok=range(256))
    virsh("pool-undefine", name)
    return 1


def remove_domain(name: str) -> int:
    """Remove a domain with its snapshots, whatever it does; its disks are the pool's."""
    if not state(name):
        return 0
    virsh("destroy", name, ok=range(256))
    for snapshot in snapshots(name):
        virsh("snapshot-delete", name, snapshot, "--metadata", ok=range(256))
    virsh("undefine", name, "--managed-save", "--snapshots-metadata")
    return 1


def snapshots(domain: str) -> list[str]:
    """The domain's snapshots, oldest first."""
    done = virsh("snapshot-list", domain, "--name", "--topological", ok=range(256))
    return done.stdout.split() if done.status == 0 else []


def revert(domain: str, snapshot: str) -> int:
    """Bring the domain back as it was saved: what was saved standing still stands still, with its memory."""
    virsh("snapshot-revert", domain, snapshot)
    return 1

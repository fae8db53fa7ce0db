"""What the Vagrantfile reads: all that it says of the machines is worked out here."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import emulation
from lab.builds.vboxbox import CONTROLLER
from lab.paths import ROOT
from lab.providers.base import STORE_ON_NODE
from lab.providers.vagrant import acceleration
from lab.providers.vagrant.acceleration import Acceleration
from lab.providers.vagrant.disks import Disks, management_mac, management_range
from lab.render import Rendered, RenderedNode

#: How many times longer than on the host things take in a machine, as waits should be planned.
SLOWNESS = {
    Acceleration.KVM: 1.5,
    Acceleration.EMULATION: emulation.FACTOR,
    Acceleration.VIRTUALBOX: 1.5,
}
#: The last QEMU series that leaves wrong flags behind cmpxchg16b (cx16). The kernel allocates memory by it:
#: an interrupt at the next instruction saves the flags, and what takes them back may end the machine.
WRONG_FLAGS = 7
BOOT_SECONDS = 45
HALT_SECONDS = 60
#: MiB of a node that the lab file does not limit.
MEMORY = {True: 3072, False: 2048}  # control plane, others

_ADOPT = """\
mkdir -p {store}
mountpoint -q {store} || mount -t ext4 -o ro,noload LABEL=UP-STORE {store}
exec {store}/{artifact}/adopt
"""


def document(lab: Rendered, disks: Disks, image: Path, driver: Acceleration) -> dict[str, Any]:
    """The whole of it, as JSON data. `image` is the artifact of the box, or of what a box is adopted with."""
    slowness = SLOWNESS[driver] * emulation.slowness()  # of a host that is emulated itself
    range_ = management_range(lab)
    return {
        "lab": lab.id,
        "hypervisor": lab.hypervisor,
        "driver": driver.value,
        "cpu_mode": "host-passthrough" if driver is Acceleration.KVM else "maximum",
        "qemu_arguments": qemu_arguments() if driver is Acceleration.EMULATION else [],
        "slowness": slowness,
        **_box(lab, image),
        "boot_timeout": round(BOOT_SECONDS * slowness),
        "halt_timeout": round(HALT_SECONDS * slowness),
        "prefix": f"underpass-{lab.id}.",
        "pool": pool(lab),
        "key": str(lab.folder / "keys" / "ssh"),
        "store": str(disks.store),
        # Where VirtualBox attaches the disks: behind the one of the lab's own box, or of one as others make.
        "controller": {"name": "SATA Controller", "ports": [2, 3]}
        if lab.box
        else {"name": CONTROLLER, "ports": [1, 2]},
        "management": {
            "name": management(lab),
            "address": str(range_),
            "gateway": str(range_[1]),
            "netmask": str(range_.netmask),
            "first": str(range_[2]),
            "last": str(range_[-2]),
        },
        "network": {
            "name": lab.switch,
            "bridge": lab.uplink,
            "gateway": lab.gateway,
            "netmask": _netmask(lab.prefix_length),
        },
        "ansible": {
            "playbook": str(ROOT / "playbooks" / "up.yaml"),
            "inventory": str(lab.folder / "inventory.yaml"),
            "config": str(ROOT / "playbooks" / "ansible.cfg"),
            "command": str(Path(sys.executable).parent / "ansible-playbook"),
        },
        "nodes": [_node(lab, disks, node, driver) for node in lab.nodes],
    }


def qemu_arguments() -> list[str]:
    """What takes from an emulated processor what it is better without, by what QEMU there is.

    "Fast strings" (erms, fsrm): it moves them a byte at a time, and a kernel that finds them copies and
    clears by nothing else. Without, a pipe and fresh pages take 0.6x of the time. Page tables of five levels
    (la57) have one more to walk; and on a host of machines that has them VirtualBox's never start, whose own
    have four. For cmpxchg16b see `WRONG_FLAGS`; programs that insist on it (x86-64-v2) do not start then. By
    QEMU's own arguments, as vagrant-libvirt takes features for named models alone.
    """
    without = ["erms", "fsrm", "la57", *(["cx16"] if acceleration.series() <= WRONG_FLAGS else [])]
    return [word for feature in without for word in ("-global", f"max-x86_64-cpu.{feature}=off")]


def _box(lab: Rendered, image: Path) -> dict[str, Any]:
    """The lab's own box, by its file; or one that Vagrant knows by name, and how its machines are adopted."""
    if lab.box:
        adopt = _ADOPT.format(store=STORE_ON_NODE, artifact=image.name)
        return {"box": lab.box, "box_file": None, "box_sha256": None, "adopt": adopt}
    return {
        "box": f"underpass-{image.name.rpartition('-')[2]}",
        "box_file": str(image / "underpass.box"),
        "box_sha256": (image / "underpass.box.sha256").read_text(encoding="ascii").strip(),
        "adopt": None,
    }


def memory(lab: Rendered, node: RenderedNode) -> int:
    """What the machine of `node` has, in MiB."""
    return node.memory or MEMORY[node == lab.control_plane]


def _node(lab: Rendered, disks: Disks, node: RenderedNode, driver: Acceleration) -> dict[str, Any]:
    plane = node == lab.control_plane
    # Emulated processors share the host's poorly: one is the quickest, but for the node that all wait for.
    processors = min(1 if driver is Acceleration.EMULATION and not plane else 2, os.cpu_count() or 1)
    return {
        "name": node.name,
        "address": node.address,
        "mac": node.mac.replace(":", ""),
        "management_mac": management_mac(node),
        "base_mac": management_mac(node).replace(":", ""),  # as VirtualBox takes it
        "cpus": max(1, round(node.cpus)) if node.cpus else processors,
        "memory": memory(lab, node),
        "identity": str(disks.identity(node.name)),
        "console": str(disks.console(node.name)),
        "rendered": asdict(node),
    }


def pool(lab: Rendered) -> str:
    return f"underpass-{lab.id}"


def management(lab: Rendered) -> str:
    return f"underpass-{lab.id}.vagrant"


def management_bridge(lab: Rendered) -> str:
    return f"up{lab.tag}m"


def _netmask(length: int) -> str:
    bits = (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
    return ".".join(str(bits >> shift & 0xFF) for shift in (24, 16, 8, 0))


def dump(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2) + "\n"

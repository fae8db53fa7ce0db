"""A box that is a host of labs itself: Debian 13 as `make setup VMS=1` leaves it, for the suite alone.

A disk as that of `box.py`, without what makes a node and with what a host needs: its packages, and the
controller's Python packages. A machine of it without a way out needs nothing but a checkout and the
artifacts. All is installed here, where the processors are the host's own.
"""

from __future__ import annotations

from pathlib import Path

from lab.bootstrap import NEEDS, VM_NEEDS
from lab.builds import apt, box, controller, image
from lab.builds.contained import enclosed
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode
from lab.lock import lock
from lab.run import run
from lab.store import Building, Recipe

NAME = "vm-box-host"
#: Where the checkout belongs on the machine: its `.venv` is there already.
PLACE = "/root/underpass"
INSTALL = Path(__file__).parent / "vm" / "install-controller"

SYSTEM = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "linux-sysctl-defaults",
    "kmod",
    "procps",
    "curl",
    "python3",
)
#: What a person installs before the first `make setup`, and what that installs.
HOST = ("make", "python3-venv", *(need.package for need in (*NEEDS, *VM_NEEDS)))
PACKAGES = tuple(sorted({*SYSTEM, *box.PACKAGES, *HOST}))


def recipe(wheels: Recipe) -> Recipe:
    """`wheels` are the controller's."""
    suite = lock().versions["debian"]
    return Recipe(
        name=NAME,
        title=f"Box for a machine that is a host of labs (Debian {suite})",
        inputs={
            "suite": suite,
            "packages": list(PACKAGES),
            "masked": sorted(box.MASKED),
            "unmasked": sorted(box.UNMASKED),
            "wheels": wheels.key,
            "files": tree_digest(
                box.OVERLAY,
                image.OVERLAY,
                INSTALL,
                Path(__file__),
                Path(box.__file__),
                Path(image.__file__),
                Path(apt.__file__),
            ),
        },
        build=_build,
        needs=(wheels.name,),
        space=6 << 30,
        provider="vagrant",
        for_tests=True,
    )


def _build(building: Building) -> None:
    building.folder.chmod(0o700)
    root = building.scratch / "rootfs"
    building.step.say(f"installing {len(PACKAGES)} packages and what they need")
    apt.bootstrap(root, building.scratch, PACKAGES)
    building.step.say("configuring")
    box.configure(root)
    for unit in box.ENABLED:
        run(["systemctl", f"--root={root}", "enable", unit], code=ExitCode.ARTIFACT)
    building.step.say("installing the controller's Python packages")
    wheels = building.needs["controller-wheels"].path / "wheels"
    run(enclosed([INSTALL, root, wheels, controller.LOCK, PLACE]), code=ExitCode.ARTIFACT)
    building.facts["packages"] = apt.versions(root)
    disk = building.scratch / "disk.raw"
    building.step.say("writing the disk")
    box._write_disk(root, disk, building.scratch)
    building.step.say("compressing the disk")
    box._pack(disk, building.folder, building.scratch)

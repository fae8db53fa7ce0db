"""What the provider needs of whatever runs its machines, beside what Vagrant does by itself.

Vagrant makes, starts and halts machines, and takes snapshots, by either of them. Who is asked what there
is, what stands still, what goes back and what is left of a lab are the hypervisors of this package.
"""

from __future__ import annotations

from typing import Any, Protocol

from lab.providers.vagrant.acceleration import Acceleration
from lab.providers.vagrant.disks import Disks

#: What a machine is doing, in words that are libvirt's; it has more of them, which count as neither.
RUNNING, OFF, ABSENT = "running", "shut off", ""
#: It stands still with its memory: in the host's memory, or kept in a file.
PAUSED = "paused"


class Hypervisor(Protocol):
    """The machines of one lab, and what they hang on. What changes something says how many things."""

    #: What Vagrant calls it.
    name: str
    #: The artifact of the lab's own box for it.
    image: str

    def driver(self) -> Acceleration:
        """What runs guests here, found out by running one; `LabError` (HOST) if nothing does."""

    def ensure(self) -> int:
        """Start its daemons, where nothing else does."""

    def stop_if_idle(self) -> int:
        """Stop those that `ensure` started, if no machine of anybody's is left."""

    def prepare(self, document: dict[str, Any]) -> int:
        """Make the networks, and where machines' disks are kept, as `settings.document` has them."""

    def clear(self) -> int:
        """Remove what `prepare` made; the machines are gone."""

    def leftovers(self) -> list[str]:
        """What `prepare` made and is still there, a line each."""

    def machines(self) -> set[str]:
        """The lab's machines that there are, also those that the lab no longer knows."""

    def state(self, machine: str) -> str:
        """RUNNING, PAUSED, OFF, ABSENT, or another word for something in between."""

    def suspend(self, machine: str) -> None:
        """Let it stand still."""

    def resume(self, machine: str, *, strict: bool = True) -> None:
        """Let it go on from where it stands still; unless `strict`, if it does."""

    def power_off(self, machine: str) -> None:
        """Cut its power, and with it the memory of one that stands still."""

    def remove(self, machine: str) -> int:
        """Remove it with all that is kept of it, whatever it does; 0 if there is none."""

    def snapshots(self, machine: str) -> list[str]:
        """Its snapshots, oldest first."""

    def revert(self, machine: str, snapshot: str) -> int:
        """Bring it back as it was saved: what was saved with its memory then stands still."""


def hypervisor(name: str, disks: Disks) -> Hypervisor:
    """The one called `name`, with the machines of the lab of `disks`."""
    from lab.providers.vagrant.libvirt import Libvirt
    from lab.providers.vagrant.virtualbox import VirtualBox

    return VirtualBox(disks) if name == VirtualBox.name else Libvirt(disks)

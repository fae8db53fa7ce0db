"""What a provider of nodes must do. The rest of Underpass knows nodes only through this.

A provider makes, starts, stops, describes and destroys nodes, and nothing else: when a node answers
on ssh with Python installed and the artifact store readable at `STORE_ON_NODE`, its work is done.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from lab.errors import ExitCode, die
from lab.render import Rendered, RenderedNode
from lab.steps import current_step, side_by_side

#: Where every node finds the artifact store, read only. An artifact is a folder `<name>-<key>` in it.
STORE_ON_NODE = "/opt/underpass/store"

SNAPSHOT_NAME = re.compile(r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")


class NodeState(StrEnum):
    """What a node is doing, as found out by asking, not by remembering."""

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"


class Provider(ABC):
    """The nodes of one lab. Every method may be called again, and after a kill at any moment.

    Methods that change something return how many things they changed, so that a second call
    returns 0. Faults are `LabError` with exit status NODE.
    """

    name: str

    #: The artifact that nodes are made from.
    image: str = "node-image"

    #: Whether snapshots are of running nodes, memory included; else of the disks of nodes that are off.
    snapshots_run: bool = False

    #: Whether nodes have a default route, by the host's address; else they reach each other and the host.
    routed: bool = True

    #: How many times longer than on the host's own processor things take in the nodes. Whoever waits
    #: for something in a node multiplies its limit by this.
    slowness: float = 1.0

    def __init__(self, lab: Rendered) -> None:
        self.lab = lab

    @abstractmethod
    def create(self, image: Path, store: Path) -> int:
        """Make what the nodes need (disks from `image`, network) for all nodes; start nothing.

        `image` is the root file system's artifact, `store` the folder of artifacts, which every
        node sees read only at `STORE_ON_NODE`. The lab's keys are already in its folder.
        """

    @abstractmethod
    def start(self, node: RenderedNode) -> int:
        """Start the node and wait until it answers on ssh, or fail with its console's tail."""

    def start_all(self, nodes: Sequence[RenderedNode]) -> int:
        """Start all of `nodes` at once."""
        return side_by_side(self.start, nodes)

    @abstractmethod
    def stop(self, node: RenderedNode, *, force: bool = False) -> int:
        """Power the node off in order; `force` cuts its power instead."""

    @abstractmethod
    def reboot(self, node: RenderedNode) -> int:
        """Stop in order and start again."""

    @abstractmethod
    def destroy(self) -> int:
        """Remove every node and whatever else of the lab is on the host, running or not."""

    @abstractmethod
    def status(self, node: RenderedNode) -> NodeState:
        """What the node is doing now."""

    @abstractmethod
    def console(self, node: RenderedNode, lines: int = 50) -> str:
        """The last lines that the node wrote to its console."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Everything of this lab that exists on the host, one line each; empty after `destroy`."""

    @abstractmethod
    def snapshot_save(self, name: str) -> int:
        """Keep all nodes under `name`: disks of stopped ones, or (`snapshots_run`) memory as well."""

    @abstractmethod
    def snapshot_restore(self, name: str) -> int:
        """Put all nodes back as they were saved; with memory, they run on from there."""

    @abstractmethod
    def snapshot_delete(self, name: str) -> int:
        """Forget what was saved under `name`."""

    @abstractmethod
    def snapshots(self) -> list[str]:
        """The names of the saved snapshots, oldest first."""

    def snapshot_check(self, name: str) -> None:
        """Refuse a name that cannot be saved under, before anything is done for it."""
        new_snapshot(name, self.snapshots())

    def snapshot_require(self, name: str) -> None:
        """Refuse a name that nothing was saved under, before anything is done for it."""
        known_snapshot(name, self.snapshots())

    def refuse_moves(self, old: Mapping[str, RenderedNode]) -> None:
        """A running node cannot change its address or cable under its cluster's feet.

        `old` are the nodes as they were made, by name.
        """
        for node in self.lab.nodes:
            was = old.get(node.name, node)
            if (was.address, was.host_link) == (node.address, node.host_link):
                continue
            if self.status(was) is NodeState.RUNNING:
                die(
                    f"{node.name} runs as {was.address}, and the lab file now makes it {node.address}",
                    hint="`lab stop` it first, or keep the order of the nodes: new ones go to the end",
                    code=ExitCode.NODE,
                )

    def remove_dropped(self, old: Mapping[str, RenderedNode]) -> int:
        """Remove those of the nodes that were made (`old`, by name) that the lab file no longer has."""
        now = {node.name for node in self.lab.nodes}
        changed = 0
        for name, node in old.items():
            if name not in now:
                say(f"{name} is no longer in the lab file; removing it")
                changed += self.remove(node)
        return changed

    @abstractmethod
    def remove(self, node: RenderedNode) -> int:
        """Remove one node that the lab file no longer has: running or not, with its disk."""


def say(note: str) -> None:
    """Show a word beside the step that runs, if one does."""
    if step := current_step():
        step.say(note)


def new_snapshot(name: str, saved: list[str]) -> None:
    """Refuse `name` if it is no name for a snapshot, or one of those `saved`."""
    if not SNAPSHOT_NAME.match(name):
        die(
            f"{name!r} is not a name for a snapshot",
            hint="lower-case letters, digits, dots, underscores and hyphens, 64 at most",
        )
    if name in saved:
        die(f"there is already a snapshot {name}", hint="choose another name, or delete that one")


def known_snapshot(name: str, saved: list[str]) -> None:
    """Refuse `name` if it is not one of those `saved`."""
    if name not in saved:
        known = ", ".join(saved) or "none"
        die(f"there is no snapshot {name}", hint=f"saved: {known}", code=ExitCode.NOT_THERE)

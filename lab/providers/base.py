"""What a provider of nodes must do. The rest of Underpass knows nodes only through this.

A provider makes, starts, stops, describes and destroys nodes, and nothing else: when a node answers
on ssh with Python installed and the artifact store readable at `STORE_ON_NODE`, its work is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from pathlib import Path

from lab.render import Rendered, RenderedNode

#: Where every node finds the artifact store, read only. An artifact is a folder `<name>-<key>` in it.
STORE_ON_NODE = "/opt/underpass/store"


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
        """Keep the disks of all nodes (all stopped) under `name`."""

    @abstractmethod
    def snapshot_restore(self, name: str) -> int:
        """Put the disks of all nodes (all stopped) back as they were saved."""

    @abstractmethod
    def snapshot_delete(self, name: str) -> int:
        """Forget what was saved under `name`."""

    @abstractmethod
    def snapshots(self) -> list[str]:
        """The names of the saved snapshots, oldest first."""

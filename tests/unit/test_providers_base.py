"""What all providers share: nodes that left the lab file, and nodes that it moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.errors import ExitCode, LabError
from lab.labfile import LabFile
from lab.providers.base import NodeState, Provider
from lab.render import Rendered, render

PLANE, WORKER, THIRD = (
    {"name": "plane", "roles": ["control-plane"]},
    {"name": "worker", "roles": ["worker"]},
    {"name": "third", "roles": ["worker"]},
)


def lab_of(*nodes: dict[str, Any]) -> Rendered:
    file = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "shared", "nodes": nodes}
    return render(LabFile.model_validate(file))


class Nodes(Provider):
    """Nodes of which only the state is known."""

    name = "nodes"

    def __init__(self, lab: Rendered, *running: str) -> None:
        super().__init__(lab)
        self.running = running
        self.removed: list[str] = []

    def status(self, node: Any) -> NodeState:
        return NodeState.RUNNING if node.name in self.running else NodeState.STOPPED

    def remove(self, node: Any) -> int:
        self.removed.append(node.name)
        return 2

    def create(self, image: Path, store: Path) -> int:
        raise NotImplementedError

    start = stop = reboot = console = create  # type: ignore[assignment]
    snapshot_save = snapshot_restore = snapshot_delete = create  # type: ignore[assignment]
    destroy = leftovers = snapshots = create  # type: ignore[assignment]


def made(lab: Rendered) -> dict[str, Any]:
    return {node.name: node for node in lab.nodes}


def test_nodes_that_left_the_lab_file_are_removed_and_no_others() -> None:
    nodes = Nodes(lab_of(PLANE, WORKER))
    assert nodes.remove_dropped(made(lab_of(PLANE, WORKER, THIRD))) == 2
    assert nodes.removed == ["third"]
    assert nodes.remove_dropped(made(nodes.lab)) == nodes.remove_dropped({}) == 0


def test_a_running_node_does_not_move_to_another_address() -> None:
    before = made(lab_of(PLANE, WORKER))
    swapped = lab_of(WORKER, PLANE)
    with pytest.raises(LabError, match=f"worker runs as {before['worker'].address}") as refused:
        Nodes(swapped, "worker").refuse_moves(before)
    assert refused.value.code is ExitCode.NODE
    assert refused.value.hint
    Nodes(swapped).refuse_moves(before)  # they are off
    Nodes(lab_of(PLANE, WORKER, THIRD), "plane", "worker").refuse_moves(before)  # one more, at the end

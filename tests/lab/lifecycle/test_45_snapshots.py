"""A saved lab comes back whole: what was there then is there, what came later is not, and all agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.errors import ExitCode
from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.prepared import Prepared


@pytest.fixture
def prepared(lab: Rendered, command: LabCommand, cluster: Cluster) -> Iterator[Prepared]:
    """A prepared cluster, saved as `prepared`, then changed."""
    prepared = Prepared(lab, cluster)
    prepared.make()
    command("snapshot", "delete", "prepared")
    command.check("snapshot", "save", "prepared")
    prepared.change()
    try:
        yield prepared
    finally:
        command("snapshot", "delete", "prepared")
        prepared.remove()


def test_a_restored_lab_is_as_it_was_saved(lab: Rendered, command: LabCommand, prepared: Prepared) -> None:
    assert [row["name"] for row in command.json("snapshot", "list")] == ["prepared"]
    outcome = command.json("snapshot", "restore", "prepared")
    assert [node["ready"] for node in outcome["nodes"]] == [True] * len(lab.nodes)
    prepared.holds()
    assert command.json("up")["changed"] == 0


def test_names_that_cannot_be_are_refused_and_the_lab_goes_on(command: LabCommand, cluster: Cluster) -> None:
    assert command("snapshot", "restore", "never").returncode == ExitCode.NOT_THERE
    assert command("snapshot", "delete", "never").returncode == ExitCode.NOT_THERE
    assert "not a name" in command("snapshot", "save", "No/Name").stderr
    assert cluster.health() == "ok"

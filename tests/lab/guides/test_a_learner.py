"""`lab guide` leads a learner: it says what is missing, helps, and takes changes back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.guide import course
from lab.render import Rendered
from tests.lab.command import LabCommand

GUIDE = "getting-started"
NAMESPACE = "hello"


@pytest.fixture
def begun(command: LabCommand) -> Iterator[LabCommand]:
    """The command, with the guide begun and at its second step; taken back afterwards."""
    command.check("guide", "reset", GUIDE)
    first = command.check("guide", "start", GUIDE).stdout
    assert "Look around" in first
    looked = command.json("guide", "next")
    assert (looked["step"], looked["done"]) == (2, False)
    yield command
    command.check("guide", "reset", GUIDE)


def test_a_learner_is_led_through_a_step(begun: LabCommand, lab: Rendered, cluster: Cluster) -> None:
    red = begun("guide", "next")
    assert red.returncode == 10
    assert "missing" in red.stdout
    assert "namespace hello has no pod friend" in red.stdout

    state = begun.json("guide", "list")
    assert {row["name"]: row["state"] for row in state}[GUIDE] == "at step 2"
    assert begun.json("guide", "hint")["hint"]

    assert "$ lab kubectl apply" in begun.check("guide", "solve").stdout
    assert begun("guide", "check").returncode == 0
    assert begun.json("guide", "next")["step"] == 3

    again = begun.check("guide", "start", GUIDE).stdout
    assert "Give them a name" in again
    assert "Look around" not in again

    reset = begun.json("guide", "reset")
    assert reset["removed"] == [f"namespace/{NAMESPACE}"]
    assert cluster.kubectl("get", "namespace", NAMESPACE, ok=range(256)).status != 0
    assert begun("guide", "check").returncode == 9


def test_a_broken_step_is_named_as_such(begun: LabCommand) -> None:
    begun.check("guide", "solve")
    begun.check("kubectl", "delete", "pod", "guest", "-n", NAMESPACE)
    done = begun("guide", "check", "-o", "json", "--progress=none")
    assert done.returncode == 10
    red = [check["promise"] for check in json.loads(done.stdout)["checks"] if check["result"] != "passed"]
    assert red == ["The pod runs and is ready [guest]"]


def test_a_guide_that_is_not_there_is_named_with_those_that_are(command: LabCommand, lab: Rendered) -> None:
    done = command("guide", "start", "no-such-guide")
    assert done.returncode == 2
    assert all(name in done.stderr for name in course.names())

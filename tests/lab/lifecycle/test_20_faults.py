"""Kills, a second command at once, a missing lab: clear words, and the next `lab up` converges."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import LAB_ID, connect
from tests.lab.waiting import until
from tests.sizes import SIZES


def test_a_second_command_on_the_same_lab_is_told_who_is_at_work(lab: Rendered, command: LabCommand) -> None:
    first = command.start("up", "--progress=json")
    try:
        assert first.stderr is not None
        first.stderr.readline()  # the first step has begun: the lock is held
        second = command("up", "--progress=none")
        assert second.returncode == 8, second.stderr
        assert str(first.pid) in second.stderr
        assert "what to do" in second.stderr
    finally:
        first.communicate(timeout=600)
    assert first.returncode == 0


SMALL = """\
apiVersion: underpass.dev/v1
kind: Lab
id: {id}
nodes:
  - name: node-1
    roles: [control-plane, worker]
istio:
  enabled: false
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCommand]:
    """A lab of one node beside the one under test, not made yet."""
    file = tmp_path_factory.mktemp("small") / "lab.yaml"
    file.write_text(SMALL.format(id=f"{LAB_ID}-cut"))
    command = LabCommand(file)
    command.check("down")
    yield command
    command.check("down")


@pytest.fixture(scope="module")
def whole_life(small: LabCommand) -> int:
    """How many events an `up` from nothing tells of, which is how its moments are numbered here."""
    events = small.check("up", "--progress=json").stderr.splitlines()
    small.check("down")
    return len(events)


@pytest.mark.parametrize("moment", range(SIZES.kills_during_up))
def test_an_up_that_is_cut_off_is_finished_by_the_next(
    small: LabCommand, whole_life: int, moment: int
) -> None:
    """From nothing, at moments spread evenly over its life; killed and interrupted in turn."""
    end = (signal.SIGKILL, signal.SIGINT)[moment % 2]
    at = max(1, round(whole_life * (moment + 0.5) / SIZES.kills_during_up))
    small.check("down")
    first = small.start("up", "--progress=json")
    assert first.stderr is not None
    told = [line for _, line in zip(range(at), first.stderr, strict=False)]
    assert len(told) == at, f"it ended early: {told[-1:]}"
    os.killpg(first.pid, end)
    first.communicate(timeout=120)
    assert first.returncode in (-signal.SIGKILL, 130), told[-1]
    small.check("up")
    assert small.json("up")["changed"] == 0, told[-1]


def test_a_mend_that_is_cut_off_is_finished_by_the_next(lab: Rendered, command: LabCommand) -> None:
    """Killed between writing a unit's files and restarting it, or wherever it is then."""
    for node in lab.nodes:
        connect(lab, node).check_output("sh -c 'echo \"# a hand was here\" >> /etc/kubernetes/kubelet.yaml'")
        connect(lab, node).check_output("systemctl stop containerd")
    first = command.start("up", "--progress=json")
    assert first.stderr is not None
    for line in first.stderr:
        if "Run kubelet" in line:
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=120)
    command.check("up")
    for node in lab.nodes:
        assert not connect(lab, node).file("/etc/kubernetes/kubelet.yaml").contains("a hand was here")
    assert command.json("up")["changed"] == 0


def test_commands_on_a_lab_that_is_not_there_say_so(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("apiVersion: underpass.dev/v1\nkind: Lab\nid: nowhere\n")
    nowhere = LabCommand(file)
    for verb in (["status"], ["stop"], ["start"], ["kubectl", "get", "nodes"], ["report"], ["verify"]):
        done = nowhere(*verb)
        assert done.returncode == 9, (verb, done.stderr)
        assert "there is no lab nowhere" in done.stderr
        assert "Traceback" not in done.stderr
    done = nowhere("down")
    assert done.returncode == 0
    assert "nothing of lab nowhere" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["nosuchcommand"], 2),
        (["up", "--nosuchoption"], 2),
        (["-o", "xml", "status"], 2),
        (["build", "nosuchartifact"], 2),
        (["verify", "nosucharea"], 2),
        (["image", "load", "/nonexistent"], 2),
        (["image", "load", "/etc/hostname"], 2),
        (["bundle", "load", "/etc/hostname"], 5),
        (["bundle", "load", "/nonexistent"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_words_have_their_exit_status_and_no_trace(
    lab: Rendered, command: LabCommand, arguments: list[str], status: int
) -> None:
    done = command(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_lab_file_with_faults_lists_them_all(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("apiVersion: underpass.dev/v0\nkind: Lab\nid: NO\nnodez: []\n")
    done = LabCommand(file)("up")
    assert done.returncode == 3
    for word in ("lab.yaml:1", "lab.yaml:3", "lab.yaml:4", "did you mean nodes?"):
        assert word in done.stderr


def test_a_stopped_control_plane_is_reported_and_not_a_trace(lab: Rendered, command: LabCommand) -> None:
    command.check("exec", lab.control_plane.name, "--", "systemctl", "stop", "kube-apiserver")
    try:
        status = until(
            lambda: (seen := command.json("status"))["api"] != "ok" and seen, "the API server is seen as down"
        )
        assert all(node["ssh"] for node in status["nodes"])
        assert command("kubectl", "get", "nodes").returncode == 1
    finally:
        command.check("up")
    assert command.json("status")["api"] == "ok"

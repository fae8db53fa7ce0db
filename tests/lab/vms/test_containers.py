"""System containers on a machine whose init is systemd and that has cgroup v2 alone.

A virtual machine (`inside.py`) is the host of a lab of its own: the README's command brings it up there,
beside that systemd.

One story in order, as each step takes a minute where processors are emulated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.vms.inside import Machine, inside

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-host"
INNER_ID = "inner"
INNER = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {INNER_ID}
nodes:
  - name: node-1
    roles: [control-plane, worker]
"""
#: What is promised of every lab, as far as the time goes.
AREAS = ("kernel", "network")

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine with a checkout and the artifacts."""
    file = tmp_path_factory.mktemp("host") / "lab.yaml"
    with inside(LAB_ID, "memory: 6GiB", file, INNER) as machine:
        yield machine


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, list[str]]:
    """What there was before the lab: setting up is done."""
    machine("make setup")
    return machine.seen()


def test_the_machine_is_debian_under_systemd_with_cgroup_v2_alone(machine: Machine) -> None:
    assert machine("cat /proc/1/comm") == "systemd"
    assert machine("findmnt -n -t cgroup,cgroup2 -o TARGET,FSTYPE").split() == ["/sys/fs/cgroup", "cgroup2"]
    assert machine(". /etc/os-release; echo $ID $VERSION_ID") == "debian 13"
    assert machine("ip route show default") == ""


def test_the_readmes_command_brings_a_lab_up(machine: Machine, before: dict[str, list[str]]) -> None:
    assert f"Lab {INNER_ID} is up" in machine("make up")
    seen = machine.lab_command("status")
    assert seen["api"] == "ok", seen
    assert [(node["state"], node["ready"]) for node in seen["nodes"]] == [("running", True)]


def test_nothing_was_built_there(machine: Machine) -> None:
    made = "find /root/.cache/underpass/store -maxdepth 1 -newer .venv/underpass.json"
    assert machine(f"{made} ! -name store") == ""


def test_the_hosts_systemd_lets_the_lab_be(machine: Machine) -> None:
    """It puts all control groups in order anew when it reads its units again: a lab's are not its own."""
    of_node = f"cat /sys/fs/cgroup/underpass-{INNER_ID}/node-1/payload/cgroup.controllers"
    given = machine(of_node)
    assert {"cpu", "cpuset", "memory", "pids"} <= set(given.split())
    machine("systemctl daemon-reload; systemctl restart systemd-journald.service")
    assert machine(of_node) == given
    assert machine("systemctl list-units --failed --plain --no-legend") == ""


def test_what_is_promised_of_every_lab_holds_there(machine: Machine) -> None:
    told = machine.lab_command("verify", *AREAS)
    assert [line for line in told["promises"] if line["result"] not in ("passed", "skipped")] == []
    assert told["held"]
    assert {line["area"] for line in told["promises"] if line["result"] == "passed"} == set(AREAS)


def test_nothing_stays_behind(machine: Machine, before: dict[str, list[str]]) -> None:
    machine(".venv/bin/lab down --progress=none")
    after = machine.seen()
    assert {kind: sorted(set(before[kind]) ^ set(after[kind])) for kind in before} == {
        kind: [] for kind in before
    }
    assert machine("ls /root/.local/state/underpass/labs") == ""  # its lock, hidden, stays
    assert machine("systemctl list-units --failed --plain --no-legend") == ""

"""A lab of machines by KVM, for hosts whose own processors cannot run them.

A virtual machine (`inside.py`) whose processors have virtualisation themselves is the host of that lab: where
they are emulated, AMD's. One story in order, of which a cluster takes twenty minutes there; it says nothing
of how fast KVM is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab.providers.vagrant import acceleration
from lab.providers.vagrant.acceleration import Acceleration
from lab.providers.vagrant.settings import WRONG_FLAGS
from tests.lab.vms.inside import Machine, inside

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-kvm"
INNER_ID = "inner"
#: What is promised of every lab and asks most of a kernel and of its processors.
AREAS = ("kernel", "redirect")
INNER = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {INNER_ID}
provider: vagrant
nodes:
  - name: node-1
    roles: [control-plane, worker]
"""

pytestmark = pytest.mark.timeout(3 * 3600)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine with a checkout and the artifacts, set up for machines of its own."""
    file = tmp_path_factory.mktemp("host") / "lab.yaml"
    with inside(LAB_ID, "memory: 10GiB", file, INNER, "vagrant") as machine:
        machine("make setup VMS=1")
        yield machine


@pytest.fixture(scope="module")
def lasting(machine: Machine) -> Machine:
    """The machine; skipped where it would not last as long as a cluster takes."""
    series = acceleration.series()
    if series <= WRONG_FLAGS and acceleration.tried().best is Acceleration.EMULATION:
        pytest.skip(f"an emulated host of machines does not last by QEMU {series}")
    return machine


def test_the_doctor_finds_that_kvm_starts_a_guest(machine: Machine) -> None:
    found = {finding["id"]: finding for finding in machine.lab_command("doctor")}
    assert found["vm-guest"]["status"] == "ok", found["vm-guest"]
    assert "KVM" in found["vm-guest"]["evidence"]


def _is_up(machine: Machine) -> None:
    seen = machine.lab_command("status")
    assert seen["api"] == "ok", seen
    assert [(node["state"], node["ready"]) for node in seen["nodes"]] == [("running", True)]


def test_a_lab_of_machines_comes_up_by_kvm(lasting: Machine) -> None:
    lasting(".venv/bin/lab up --progress=plain")
    _is_up(lasting)
    kinds = lasting(f"virsh dumpxml underpass-{INNER_ID}.node-1 | grep -o \"domain type='[a-z]*'\"")
    assert kinds == "domain type='kvm'"
    assert lasting(".venv/bin/lab exec node-1 -- systemd-detect-virt") == "kvm"


def test_what_is_promised_of_every_lab_holds_there(lasting: Machine) -> None:
    told = lasting.lab_command("verify", *AREAS)
    assert [line for line in told["promises"] if line["result"] not in ("passed", "skipped")] == []
    assert {line["area"] for line in told["promises"] if line["result"] == "passed"} == set(AREAS)


def test_it_stops_and_starts(lasting: Machine) -> None:
    lasting(".venv/bin/lab stop --progress=none")
    assert [node["state"] for node in lasting.lab_command("status")["nodes"]] == ["stopped"]
    assert lasting("virsh list --name") == ""
    lasting(".venv/bin/lab start --progress=none")
    _is_up(lasting)


def test_nothing_stays_behind(lasting: Machine) -> None:
    lasting(".venv/bin/lab down --progress=none")
    assert lasting("virsh list --all --name; virsh net-list --all --name | grep underpass || true") == ""
    assert lasting("ls /root/.local/state/underpass/labs") == ""  # its lock, hidden, stays

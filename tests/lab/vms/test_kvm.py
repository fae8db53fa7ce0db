"""KVM, for hosts whose own processors cannot run machines.

A virtual machine (`inside.py`) whose emulated processors have AMD's virtualisation is the host of a lab of
machines: KVM is there, and the probe has it run a guest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.vms.inside import Machine, inside

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-kvm"
INNER_ID = "inner"
INNER = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {INNER_ID}
provider: vagrant
nodes:
  - name: node-1
    roles: [control-plane, worker]
"""

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine with a checkout and the artifacts, set up for machines of its own."""
    file = tmp_path_factory.mktemp("host") / "lab.yaml"
    with inside(LAB_ID, "memory: 10GiB", file, INNER, "vagrant") as machine:
        machine("make setup VMS=1")
        yield machine


def test_the_doctor_finds_that_kvm_starts_a_guest(machine: Machine) -> None:
    found = {finding["id"]: finding for finding in machine.lab_command("doctor")}
    assert found["vm-guest"]["status"] == "ok", found["vm-guest"]
    assert "KVM" in found["vm-guest"]["evidence"]

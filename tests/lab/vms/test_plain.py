"""Plain Vagrant: `vagrant up` and its Ansible provisioner end in the same cluster as `lab up`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import render as rendering
from lab.paths import ROOT
from lab.providers import provider
from tests.lab.command import LabCommand
from tests.lab.vms.conftest import lab_file, needs_machines, vagrant

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-plain"
LINK = ROOT / ".vagrant"

pytestmark = pytest.mark.timeout(3600)


def test_vagrant_up_ends_in_the_same_cluster(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(lab_file(LAB_ID))
    lab = rendering.render_file(file)
    needs_machines(lab)
    if LINK.exists():
        pytest.skip(f"{LINK} belongs to another lab")
    command = LabCommand(file)
    command("down", "--progress=none")
    home = tmp_path / "home"
    try:
        command.check("build", "--provider", "vagrant", "--progress=none")
        command.check("build", provider(lab).image, "--progress=none")
        command.check("render")
        vagrant(home, "up")
        seen = command.json("status")
        assert seen["api"] == "ok", seen
        assert [(node["state"], node["ready"]) for node in seen["nodes"]] == [("running", True)] * 2
        assert vagrant(home, "ssh", "node-1", "-c", "hostname").strip() == "node-1"
        assert command.json("up")["changed"] == 0, "`lab up` would have made something else"
        vagrant(home, "destroy", "-f")
        assert {node["state"] for node in command.json("status")["nodes"]} == {"stopped"}
    finally:
        command.check("down", "--progress=none")
        LINK.unlink(missing_ok=True)
    assert provider(lab).leftovers() == []

"""The role `kernel`: a machine that boots a kernel too old for a node ends in a cluster, on a newer one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lab import builds, keys, ssh
from lab import render as rendering
from lab.cluster import Cluster
from lab.lifecycle import CLUSTER_SECONDS, on_nodes
from lab.providers import provider
from lab.provision import provision
from lab.steps import Steps
from tests.lab.command import LabCommand
from tests.lab.vms.conftest import lab_file, needs_libvirt, needs_machines

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-old"
LAB_FILE = f"""\
{lab_file(LAB_ID)}nodes:
  - name: node-1
    roles: [control-plane, worker]
    kernel: "6.12"
"""

pytestmark = pytest.mark.timeout(3600)


def test_a_machine_with_an_old_kernel_ends_on_one_that_serves(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(LAB_FILE)
    lab = rendering.render_file(file)
    needs_libvirt()
    needs_machines(lab)
    host, (node,) = provider(lab), lab.nodes
    host.destroy()
    made = builds.build_all(Steps(), provider=lab.provider, also={"vm-box-old-kernel"})
    box = made.pop("vm-box-old-kernel").path
    lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.ensure(lab)
    rendering.write(lab, LAB_FILE, on_nodes(made))
    try:
        host.create(box, box.parent)
        host.start(node)
        assert _ask(lab, "uname -r").startswith("6.1.")
        steps = Steps()
        with steps.step("kernel", "Give it a kernel"):
            assert provision(lab, "up.yaml", steps, tags="kernel").changed >= 1
        release = _ask(lab, "uname -r")
        assert release.startswith("6.12.")
        assert _ask(lab, f"ls -d /usr/src/linux-headers-{release}").endswith(release)
        assert _ask(lab, "test -s /sys/kernel/btf/vmlinux && echo types") == "types"
        with steps.step("again", "And again"):
            assert provision(lab, "up.yaml", steps, tags="kernel").what == ()
        with steps.step("cluster", "Make it a cluster") as step:
            provision(lab, "up.yaml", steps)
            Cluster(lab, made["kubernetes"].path / "bin").wait(step, CLUSTER_SECONDS)
        told = LabCommand(file).json("verify", "kernel", "redirect")
        assert told["held"], told
    finally:
        host.destroy()
        shutil.rmtree(lab.folder, ignore_errors=True)
    assert host.leftovers() == []


def _ask(lab: rendering.Rendered, script: str) -> str:
    return ssh.on_node(lab, lab.nodes[0], ["sh", "-c", script]).stdout.strip()

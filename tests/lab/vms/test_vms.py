"""Two virtual machines, by whatever runs guests here: made, saved with memory, stopped, started, removed.

One story in order, as each step takes a minute where processors are emulated.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator

import pytest

from lab import builds, doctor, keys, ssh
from lab import render as rendering
from lab.labfile import LabFile
from lab.lifecycle import on_nodes
from lab.providers import provider
from lab.providers.base import NodeState, Provider
from lab.render import Rendered, RenderedNode
from lab.steps import Steps, side_by_side
from tests.lab import hoststate

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-vm"
PROGRAMS = ("vagrant", "virsh", "libvirtd", "qemu-system-x86_64")

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def machines() -> Iterator[Provider]:
    """Two machines that run; skipped where the host cannot have them, with what it lacks."""
    if os.environ.get("UNDERPASS_VMS") != "1":
        pytest.skip("virtual machines are not asked for: make test VMS=1 T=tests/lab/vms")
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking:
        pytest.skip(f"no virtual machines here: {', '.join(lacking)} not installed; make setup VMS=1")
    file = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": LAB_ID, "provider": "vagrant"}
    lab = rendering.render(LabFile.model_validate(file))
    findings = {finding.id: finding for finding in doctor.examine(lab)}
    if findings["vm-guest"].status == "fail":
        pytest.skip(f"no virtual machines here: {findings['vm-guest'].evidence}")
    made = builds.build_all(Steps(), only={"vm-box", "images", "node-python"})
    host = provider(lab)
    host.destroy()
    lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.ensure(lab)
    rendering.write(lab, "", on_nodes({name: made[name] for name in ("images", "node-python")}))
    ssh.SOCKETS.mkdir(mode=0o700, exist_ok=True)
    before = hoststate.seen()
    try:
        assert host.create(made["vm-box"].path, made["vm-box"].path.parent) > 0
        assert {host.status(node) for node in lab.nodes} == {NodeState.STOPPED}
        assert host.create(made["vm-box"].path, made["vm-box"].path.parent) == 0
        assert host.start_all(lab.nodes) == len(lab.nodes)
        yield host
    finally:
        assert host.leftovers() != []
        assert host.destroy() > 0
        shutil.rmtree(lab.folder)
        assert host.leftovers() == []
        assert _left(lab, hoststate.difference(before, hoststate.seen())) == []


def _left(lab: Rendered, found: dict[str, list[str]]) -> list[str]:
    """What this lab left on the host; other labs may come and go meanwhile, libvirt's chains stay."""
    mine = re.compile(rf"underpass-{re.escape(lab.id)}\b|\bup{lab.tag}|/{re.escape(lab.id)}(/|$)")
    lines = [f"{kind}: {line}" for kind, lines in found.items() if kind != "rules" for line in lines]
    return [line for line in lines if mine.search(line) or line.startswith("forwarding")]


def _on(host: Provider, node: RenderedNode, script: str) -> str:
    return ssh.on_node(host.lab, node, ["sh", "-c", script]).stdout.strip()


def _boot(host: Provider, node: RenderedNode) -> str:
    return _on(host, node, "cat /proc/sys/kernel/random/boot_id")


def test_a_machine_is_the_node_that_the_lab_file_says(machines: Provider) -> None:
    for node in machines.lab.nodes:
        assert _on(machines, node, "hostname") == node.name
        assert f"{node.address}/{machines.lab.prefix_length}" in _on(machines, node, "ip -4 -br addr")
        assert node.roles
    boots = {_on(machines, node, "cat /etc/machine-id") for node in machines.lab.nodes}
    assert len(boots) == len(machines.lab.nodes)


def test_a_machine_has_a_kernel_of_its_own_and_no_way_out(machines: Provider) -> None:
    for node in machines.lab.nodes:
        assert _on(machines, node, "uname -r") != os.uname().release
        assert _on(machines, node, "ip route show default") == ""


def test_one_key_opens_a_machine_and_no_password(machines: Provider) -> None:
    public = (machines.lab.folder / "keys" / "ssh.pub").read_text().split()[:2]
    for node in machines.lab.nodes:
        keys_there = _on(machines, node, "cat /root/.ssh/authorized_keys").splitlines()
        assert [line.split()[:2] for line in keys_there] == [public]
        assert _on(machines, node, "grep -cv '^[^:]*:[*!]' /etc/shadow || true") == "0"


def test_the_artifacts_are_there_and_cannot_be_written(machines: Provider) -> None:
    names = {line.rpartition("/")[2] for line in _artifacts(machines.lab)}
    for node in machines.lab.nodes:
        there = set(_on(machines, node, "ls /opt/underpass/store").split())
        assert names <= there
        assert "Read-only file system" in _on(machines, node, "touch /opt/underpass/store/mine 2>&1 || true")


def _artifacts(lab: Rendered) -> list[str]:
    text = (lab.folder / "inventory.yaml").read_text()
    return re.findall(r"/opt/underpass/store/\S+", text)


def test_machines_reach_each_other(machines: Provider) -> None:
    one, two = machines.lab.nodes
    script = f"import socket; print(socket.create_connection(('{two.address}', 22), 60).recv(4))"
    assert _on(machines, one, f'python3 -c "{script}"') == "b'SSH-'"


def test_the_console_tells_of_the_boot(machines: Provider) -> None:
    for node in machines.lab.nodes:
        console = machines.console(node, 500)
        assert "Multi-User System" in console
        assert "\x1b" not in console


def test_starting_what_runs_changes_nothing(machines: Provider) -> None:
    assert machines.start_all(machines.lab.nodes) == 0


def test_a_snapshot_brings_memory_back_and_time_goes_on(machines: Provider) -> None:
    lab = machines.lab
    boots = {node.name: _boot(machines, node) for node in lab.nodes}
    for node in lab.nodes:
        _on(machines, node, "echo old > /root/state; echo old > /run/memory")
    assert machines.snapshot_save("prepared") == 1
    assert machines.snapshots() == ["prepared"]
    for node in lab.nodes:
        _on(machines, node, "echo new > /root/state; echo new > /run/memory")
    assert machines.snapshot_restore("prepared") == 1
    for node in lab.nodes:
        assert _on(machines, node, "cat /root/state /run/memory") == "old\nold"
        assert _boot(machines, node) == boots[node.name], "it was booted, not brought back"
        assert abs(float(_on(machines, node, "date +%s.%N")) - time.time()) < 10
    assert machines.snapshot_delete("prepared") == 1
    assert machines.snapshots() == []


def test_a_stopped_machine_comes_back_with_its_disk(machines: Provider) -> None:
    lab = machines.lab
    boots = {node.name: _boot(machines, node) for node in lab.nodes}
    for node in lab.nodes:
        _on(machines, node, "echo kept > /root/kept; sync")
    assert side_by_side(machines.stop, lab.nodes) == len(lab.nodes)
    assert {machines.status(node) for node in lab.nodes} == {NodeState.STOPPED}
    assert side_by_side(machines.stop, lab.nodes) == 0
    assert machines.start_all(lab.nodes) == len(lab.nodes)
    for node in lab.nodes:
        assert _on(machines, node, "cat /root/kept") == "kept"
        assert _boot(machines, node) != boots[node.name]

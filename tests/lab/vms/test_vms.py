"""A cluster on two virtual machines, by whatever runs guests here.

Brought up by the same command and the same playbooks as on system containers, held to the same promises,
saved with memory, stopped, started, removed.

One story in order, as each step takes a minute where processors are emulated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import builds, ssh
from lab import render as rendering
from lab.cluster import Cluster
from lab.providers import provider
from lab.providers.base import NodeState, Provider
from lab.providers.vagrant import acceleration, settings
from lab.providers.vagrant.disks import artifacts
from lab.render import RenderedNode
from lab.steps import side_by_side
from tests.lab import hoststate
from tests.lab.command import LabCommand
from tests.lab.prepared import Prepared
from tests.lab.vms.conftest import lab_file, needs_asking, needs_machines
from tests.lab.waiting import slow_down

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-vm"
#: What is promised of every lab, from the ground up.
AREAS = ("kernel", "cluster", "network", "policy", "redirect")

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCommand]:
    """The `lab` command on two machines that are a cluster; skipped where the host cannot have them."""
    file = tmp_path_factory.mktemp("vms") / "lab.yaml"
    file.write_text(lab_file(LAB_ID))
    lab = rendering.render_file(file)
    needs_machines(lab, core=True)
    command = LabCommand(file)
    command("down", "--progress=none")
    before = hoststate.seen()
    try:
        command.check("up", "--progress=plain")
        slow_down(provider(lab).slowness)
        yield command
    finally:
        slow_down(1)
        assert provider(lab).leftovers() != []
        command.check("down", "--progress=none")
        assert provider(lab).leftovers() == []
        assert not lab.folder.exists()
        assert hoststate.carrying_its_name(lab, before) == []


@pytest.fixture(scope="module")
def machines(command: LabCommand) -> Provider:
    """The provider of the machines that run."""
    return provider(rendering.render_file(command.file))


@pytest.fixture(scope="module")
def cluster(machines: Provider) -> Cluster:
    """The Kubernetes of the machines."""
    return Cluster(machines.lab, builds.locate()["kubernetes"].path / "bin")


@pytest.fixture(scope="module")
def prepared(machines: Provider, cluster: Cluster) -> Prepared:
    """Pods and a policy that are there to be kept: whatever is started takes long on these machines."""
    prepared = Prepared(machines.lab, cluster)
    prepared.make()
    return prepared


def _on(host: Provider, node: RenderedNode, script: str) -> str:
    return ssh.on_node(host.lab, node, ["sh", "-c", script]).stdout.strip()


def _boot(host: Provider, node: RenderedNode) -> str:
    return _on(host, node, "cat /proc/sys/kernel/random/boot_id")


def test_two_machines_are_a_cluster(command: LabCommand) -> None:
    seen = command.json("status")
    assert seen["api"] == "ok", seen
    assert [(node["state"], node["ready"]) for node in seen["nodes"]] == [("running", True)] * 2


def test_what_is_promised_of_every_lab_holds_on_machines(command: LabCommand, tmp_path: Path) -> None:
    done = command("verify", *AREAS, "-o", "json", "--progress=none", "--junit", str(tmp_path / "all.xml"))
    told = json.loads(done.stdout)
    broken = [line for line in told["promises"] if line["result"] not in ("passed", "skipped")]
    assert broken == []
    assert told["held"]
    assert {line["area"] for line in told["promises"] if line["result"] == "passed"} == set(AREAS)


def test_the_programs_were_compiled_beforehand(machines: Provider) -> None:
    """The compiler takes minutes on an emulated processor; the box's kernel was compiled for at its build."""
    for node in machines.lab.nodes:
        told = _on(machines, node, "journalctl -b -o cat -u underpass-datapath.service")
        assert '"loaded": true' in told
        assert '"compiled": false' in told


def test_the_images_were_unpacked_beforehand(machines: Provider) -> None:
    blobs = "/var/lib/containerd/io.containerd.content.v1.content/blobs"
    for node in machines.lab.nodes:
        assert _on(machines, node, f"find {blobs} -type f") != ""
        # What the machine's first boot wrote is younger than what its box holds.
        assert _on(machines, node, f"find {blobs} -type f -newer /var/lib/underpass-identity/etc/hosts") == ""


def test_a_second_up_changes_nothing(command: LabCommand) -> None:
    needs_asking()
    assert command.json("up")["changed"] == 0


def test_a_machine_is_the_node_that_the_lab_file_says(machines: Provider) -> None:
    for node in machines.lab.nodes:
        assert _on(machines, node, "hostname") == node.name
        assert f"{node.address}/{machines.lab.prefix_length}" in _on(machines, node, "ip -4 -br addr")
        assert node.roles
    boots = {_on(machines, node, "cat /etc/machine-id") for node in machines.lab.nodes}
    assert len(boots) == len(machines.lab.nodes)


def test_an_emulated_processor_lacks_what_is_emulated_badly(machines: Provider) -> None:
    for node in machines.lab.nodes:
        if _on(machines, node, "systemd-detect-virt || true") != "qemu":
            pytest.skip("these machines' processors are not emulated")
        flags = set(_on(machines, node, "grep -m1 ^flags /proc/cpuinfo").split())
        assert not flags & {"erms", "fsrm", "la57"}
        assert ("cx16" in flags) == (acceleration.series() > settings.WRONG_FLAGS)


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
    for node in machines.lab.nodes:
        there = set(_on(machines, node, "ls /opt/underpass/store").split())
        assert artifacts(machines.lab) <= there
        assert "Read-only file system" in _on(machines, node, "touch /opt/underpass/store/mine 2>&1 || true")


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


def test_a_saved_cluster_comes_back_with_memory(
    command: LabCommand, machines: Provider, prepared: Prepared
) -> None:
    lab = machines.lab
    boots = {node.name: _boot(machines, node) for node in lab.nodes}
    for node in lab.nodes:
        _on(machines, node, "echo old > /root/state; echo old > /run/memory")
    command.check("snapshot", "save", "prepared")
    assert [one["name"] for one in command.json("snapshot", "list")] == ["prepared"]
    for node in lab.nodes:
        _on(machines, node, "echo new > /root/state; echo new > /run/memory")
    prepared.change()
    command.check("snapshot", "restore", "prepared")
    for node in lab.nodes:
        assert _on(machines, node, "cat /root/state /run/memory") == "old\nold"
        assert _boot(machines, node) == boots[node.name], "it was booted, not brought back"
    prepared.holds()
    command.check("snapshot", "delete", "prepared")
    assert command.json("snapshot", "list") == []


def test_a_stopped_cluster_comes_back(command: LabCommand, machines: Provider, prepared: Prepared) -> None:
    lab = machines.lab
    boots = {node.name: _boot(machines, node) for node in lab.nodes}
    for node in lab.nodes:
        _on(machines, node, "echo kept > /root/kept; sync")
    command.check("stop", "--progress=none")
    assert {machines.status(node) for node in lab.nodes} == {NodeState.STOPPED}
    assert side_by_side(machines.stop, lab.nodes) == 0
    command.check("start", "--progress=none")
    for node in lab.nodes:
        assert _on(machines, node, "cat /root/kept") == "kept"
        assert _boot(machines, node) != boots[node.name]
    prepared.serves()

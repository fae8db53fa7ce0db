"""The playbook `reset` makes nodes bare: of the network, too, nothing is left running."""

from __future__ import annotations

import json

import pytest

from lab.cluster import Cluster
from lab.provision import provision
from lab.render import Rendered
from lab.steps import Steps
from tests.lab.command import LabCommand
from tests.lab.conftest import connect

#: What says, by printing anything, that a part is still there.
LEFT = {
    "programs and maps": "ls -d /sys/fs/bpf/underpass",
    "devices": "ip -o link show type vxlan; ip -o link show type veth | grep -v ' eth0@'",
    "rules": "nft list table ip underpass",
    "programs at the cgroup": (
        "bpftool -j cgroup show $(awk '$3 == \"cgroup2\" {print $2; exit}' /proc/self/mounts) | tr -d '[]'"
    ),
    "units": "systemctl list-unit-files --no-legend 'underpass-[ad]*' 'kube*' etcd.service",
}


@pytest.fixture(scope="module")
def bare(lab: Rendered) -> int:
    """The nodes after `reset`; how many things it changed."""
    with (steps := Steps()).step("reset", "Reset"):
        return provision(lab, "reset.yaml", steps).changed


@pytest.mark.parametrize("what", LEFT)
def test_reset_leaves_nothing_of_the_network(lab: Rendered, bare: int, what: str) -> None:
    assert bare > 0
    for node in lab.nodes:
        assert connect(lab, node).run(LEFT[what]).stdout.strip() == "", node.name


def test_a_second_reset_changes_nothing(lab: Rendered, bare: int) -> None:
    with (steps := Steps()).step("reset", "Reset again"):
        assert provision(lab, "reset.yaml", steps).what == ()


def test_a_node_that_was_reset_becomes_a_cluster_again(
    bare: int, command: LabCommand, cluster: Cluster
) -> None:
    assert json.loads(command.check("up", "-o", "json", "--progress=none").stdout)["changed"] > 0
    assert all(node.ready for node in cluster.nodes())

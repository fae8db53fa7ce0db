"""Labs side by side, and nothing left behind: what a lab makes carries its id and goes with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import paths
from lab.cluster import Cluster
from lab.render import Rendered, render_file
from tests.lab.command import LabCommand
from tests.lab.hoststate import difference, left_by, seen
from tests.sizes import SIZES

OTHER = """\
apiVersion: underpass.dev/v1
kind: Lab
id: {id}
nodes:
  - name: node-1
    roles: [control-plane, worker]
    cpus: 1.5
    memory: 2GiB
istio:
  enabled: false
"""

EVICTION_MIB = 100  # kubelet keeps this much memory free of pods


def _offered(command: LabCommand) -> tuple[str, int]:
    """CPUs, and MiB of memory, that Kubernetes may give to pods on the first node."""
    node = json.loads(command.check("kubectl", "get", "node", "node-1", "-o", "json").stdout)
    offered = node["status"]["allocatable"]
    memory = offered["memory"]
    return offered["cpu"], int(memory[:-2]) // (1 if memory.endswith("Mi") else 1024)


@pytest.mark.parametrize("number", range(SIZES.labs_side_by_side))
def test_a_lab_beside_another_disturbs_nothing_and_leaves_nothing(
    lab: Rendered, cluster: Cluster, tmp_path: Path, number: int
) -> None:
    name = f"{lab.id}-side-{number}"
    file = tmp_path / "lab.yaml"
    file.write_text(OTHER.format(id=name))
    rendered = render_file(file)
    other = LabCommand(file)
    other("down")
    before = seen()
    beside = cluster.kubectl("get", "nodes", "-o", "name").stdout
    try:
        outcome = other.json("up")
        assert outcome["id"] == name
        assert other.check("kubectl", "get", "nodes", "-o", "name").stdout == "node/node-1\n"
        assert cluster.kubectl("get", "nodes", "-o", "name").stdout == beside
        assert _offered(other) == ("1500m", 2048 - EVICTION_MIB), "pods are offered more than the node's size"
        made = difference(before, seen())
        assert {"mounts", "links", "namespaces", "cgroups", "processes"} <= set(made)
        changed = [line.partition(":")[0] for line in left_by(rendered, before)]
        assert not {"forwarding", "rules"} & set(changed), "the host's own were changed"
    finally:
        other.check("down")
    assert left_by(rendered, before) == []
    assert not paths.lab_home(name).exists()
    assert other.json("down")["changed"] == 0
    assert cluster.health() == "ok"

"""The measurements run for real, at their smallest, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.cluster import Cluster
from lab.measure.latency import streams
from lab.measure.network import TINY as LITTLE
from lab.render import Rendered, render_file
from tests.lab.command import LabCommand
from tests.lab.conftest import LAB_ID
from tests.lab.hoststate import left_by, seen
from tests.lab.waiting import until

RATES = ("latency", "throughput")
PATHS = ("no proxy", "bridge", "in-kernel", "Envoy")
PARTS = ("--part", "graph", "--part", "streams")
TINY = ("measure", "latency", "--tiny", *PARTS, *(word for path in PATHS for word in ("--path", path)))
HOPS = ["client", "client's Envoy", "server's Envoy", "server"]

OF_ONE_NODE = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {LAB_ID}-measured
nodes:
  - name: node-1
    roles: [control-plane, worker]
"""


def test_hazard_29_the_graph_is_made_on_free_cpus_and_on_one_by_paths_that_are_what_they_claim(
    lab: Rendered, command: LabCommand, cluster: Cluster, tmp_path: Path
) -> None:
    """What a wake-up costs depends on whether both ends share a CPU: both figures are told."""
    found: dict[str, Any] = command.json(*TINY, "--into", str(tmp_path / "out"))
    measured = {(row["kind"], row["mode"], row["path"]) for row in found["rows"]}
    for mode in ("free CPUs", "one CPU"):
        assert {(kind, mode, path) for kind in ("tcp", "http") for path in PATHS} <= measured
        assert ("pair", mode, "UNIX socket") in measured
    assert {row["path"]: row["errors"] for row in found["rows"] if row["errors"]} == {}
    assert found["accelerated"] == {"no proxy": False, "bridge": None, "in-kernel": True, "Envoy": False}
    assert found["notes"] == []
    assert "1.40" in found["versions"]["Envoy"]
    _streams_are_what_they_claim(found["rows"])
    for name in ("report.html", "result.json", "result.csv", "latency.png", "latency.svg", "streams.png"):
        assert (tmp_path / "out" / name).stat().st_size

    leftovers = [path.name for path in Path("/run/netns").glob(f"{lab.switch}.plain-*")]
    assert leftovers == []
    until(lambda: "underpass-latency" not in _namespaces(cluster), "the measurement's namespace is gone", 120)


def _streams_are_what_they_claim(rows: list[dict[str, Any]]) -> None:
    """By the node's own count; and the slow reader is slow by its own will, not by the path."""
    ran = {
        (row["mode"], row["path"], row["kind"]): row
        for row in rows
        if row["kind"] in ("stream", "stream, slow reader")
    }
    assert len(ran) == 8
    for (_, path, kind), row in ran.items():
        assert row["rate"] > 0
        assert row["cpu"] > 0
        assert (row["redirected"] > 0) is (path == "in-kernel")
        if kind == "stream, slow reader":
            assert row["rate"] < 1.1 * streams.PACE


def test_the_graph_has_istios_sidecars_plain_and_accelerated(
    lab: Rendered, command: LabCommand, cluster: Cluster, tmp_path: Path
) -> None:
    """That each is what it is called, leg by leg, the command asks the agent, and ends if it is not so."""
    if lab.istio_version is None:
        pytest.skip("the lab has no Istio")
    words = ("measure", "latency", "--tiny", "--path", "sidecars", "--into", str(tmp_path / "out"))
    found: dict[str, Any] = command.json(*words)
    assert {row["path"]: row["errors"] for row in found["rows"] if row["kind"] == "http"} == {
        "sidecars, plain": 0,
        "sidecars, accelerated": 0,
    }
    judged = {line["name"].rpartition(", ")[2] for line in found["figures"] if "sidecars" in line["name"]}
    assert judged == {"p50", "p99", "CPU a request", "errors"}
    for path in ("sidecars, plain", "sidecars, accelerated"):
        parts = {line["where"]: line for line in found["breakdown"] if line["path"] == path}
        assert all(parts[hop]["us"] > 0 for hop in HOPS)
        assert parts["all programs"]["us"] == pytest.approx(sum(parts[hop]["us"] for hop in HOPS), abs=1)
    until(lambda: "underpass-sidecars" not in _namespaces(cluster), "its namespace is gone", 120)


def test_the_network_is_measured_in_all_its_parts_beside_what_it_is_held_against(
    lab: Rendered, command: LabCommand, cluster: Cluster
) -> None:
    found: dict[str, Any] = command.json("measure", "network", "--tiny")
    rows = {row["name"]: row for row in found["figures"]}
    for ours, theirs in (("same node", "bridge"), ("across nodes", "VXLAN")):
        latency, rate = rows[f"latency, {theirs} to {ours}"], rows[f"throughput, {ours} to {theirs}"]
        of_both = {kind: [rows[f"{kind}, {name}"]["value"] for name in (ours, theirs)] for kind in RATES}
        assert latency["value"] == pytest.approx(of_both["latency"][1] / of_both["latency"][0], rel=0.01)
        assert rate["value"] == pytest.approx(of_both["throughput"][0] / of_both["throughput"][1], rel=0.01)
    assert rows["pod start, p99"]["samples"] == LITTLE.pods_a_node * len(lab.nodes)
    assert rows["CNI ADD in the agent, p99 at most"]["samples"] >= LITTLE.pods_a_node * len(lab.nodes)
    assert rows["policy change to enforcement, p99"]["samples"] == LITTLE.policy_changes
    assert (
        rows["policy change to reset, the last"]["samples"] == 8 * LITTLE.revocations
    )  # ends that were told
    assert rows["revoked ends told by ECONNRESET"]["value"] == 1.0
    assert rows[f"connect, {LITTLE.services} Services to 10"]["value"] > 0
    assert rows["agent, resident memory"]["samples"] == len(lab.nodes)

    assert [path.name for path in Path("/run/netns").glob(f"{lab.switch}.plain-*")] == []
    until(
        lambda: not [name for name in _namespaces(cluster) if name.startswith("underpass-measure")],
        "the measurement's namespaces are gone",
        120,
    )


def test_the_life_of_a_lab_is_measured_on_one_that_is_made_for_it(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(OF_ONE_NODE)
    command, lab = LabCommand(file), render_file(file)
    command("down")
    before = seen()
    found = command.json("measure", "bring-up", "--rounds", "1", "--settle", "0")
    values = {row["name"]: row["values"] for row in found["figures"]}
    assert list(values) == ["build_again", "up", "again", "stop_start", "idle_memory"]
    assert all(len(each) == 1 and each[0] > 0 for each in values.values()), values
    assert not paths.lab_home(lab.id).exists()
    assert left_by(lab, before) == []


def test_a_footprint_names_every_component_and_adds_up(lab: Rendered, command: LabCommand) -> None:
    found = command.json("measure", "footprint")
    units = {(row["node"], row["component"]) for row in found["components"] if row["kind"] == "unit"}
    for node in lab.nodes:
        assert {(node.name, "kubelet"), (node.name, "containerd"), (node.name, "underpass-agent")} <= units
        mine = sum(row["mib"] for row in found["components"] if row["node"] == node.name)
        assert abs(found["mib"][node.name] - mine) < 0.1
    plane = lab.control_plane.name
    assert {(plane, "etcd"), (plane, "kube-apiserver")} <= units


def _namespaces(cluster: Cluster) -> list[str]:
    listed = cluster.kubectl("get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}")
    return listed.stdout.split()

"""Istio's switch in the lab file: off removes it with all that was made of it, on brings it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.waiting import until

KINDS = "validatingwebhookconfigurations,mutatingwebhookconfigurations,customresourcedefinitions,namespaces"
AREAS = ("network", "mesh")


def _of_istio(cluster: Cluster) -> set[str]:
    """What the cluster has of Istio's: webhooks, resource definitions, its namespace."""
    names = cluster.kubectl("get", KINDS, "-o", "name").stdout.split()
    return {name for name in names if "istio" in name}


def test_istio_is_switched_off_and_on_again(
    lab: Rendered, command: LabCommand, cluster: Cluster, tmp_path: Path
) -> None:
    if lab.istio_version is None:
        pytest.skip("the lab has no Istio")
    before = _of_istio(cluster)
    assert "namespace/istio-system" in before
    text = command.file.read_text()
    assert "enabled: true" in text
    files = [tmp_path / f"{word}.yaml" for word in ("with", "without")]
    files[0].write_text(text)
    files[1].write_text(text.replace("enabled: true", "enabled: false"))
    with_, without = map(LabCommand, files)
    try:
        assert without.json("up")["changed"] >= 1
        until(lambda: not _of_istio(cluster), "nothing of Istio is left", 60)
        assert without.json("up")["changed"] == 0
        # What is promised of a lab without Istio.
        done = without("verify", *AREAS, "-o", "json", "--progress=none")
        told = json.loads(done.stdout)["promises"]
        results = {area: {one["result"] for one in told if one["area"] == area} for area in AREAS}
        assert results == {"network": {"passed"}, "mesh": {"skipped"}}, told
    finally:
        assert with_.json("up")["changed"] >= 1
    assert _of_istio(cluster) == before
    told = json.loads(command.check("istioctl", "version", "-o", "json").stdout)
    assert [one["Component"] for one in told["meshVersion"]] == ["pilot"]

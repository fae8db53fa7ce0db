"""From a bundle alone: empty HOME, empty cache, a network namespace with no route to anywhere."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.paths import ROOT
from tests.lab.command import LabCommand
from tests.lab.conftest import LAB_ID

NAMESPACE = f"{LAB_ID}-offline"  # of the network
LAB = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {LAB_ID}-offline
nodes:
  - name: node-1
    roles: [control-plane, worker]
istio:
  enabled: false
"""


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A network namespace with a loopback device and nothing else."""
    subprocess.run(["ip", "netns", "delete", NAMESPACE], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
    yield NAMESPACE
    subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


class Apart(LabCommand):
    """The `lab` command inside the namespace. Not by `ip netns exec`, which hides /sys/fs/cgroup."""

    def argv(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{NAMESPACE}", "--", *super().argv(*arguments)]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A folder on a real file system for a store and a lab: overlay does not go on a tmpfs' overlay."""
    yield tmp_path
    subprocess.run(["rm", "-rf", "--one-file-system", str(tmp_path)], check=True)


def _take_wheels(folder: Path) -> None:
    """As docs/artifacts.md takes them out of a bundle, for a `.venv` on a machine without registries."""
    page = (ROOT / "docs" / "artifacts.md").read_text()
    (command,) = re.findall(r"^    (tar .* underpass\.bundle .*)$", page, re.M)
    subprocess.run(["sh", "-ec", command], cwd=folder, check=True)
    assert list(folder.glob("controller-wheels-*/wheels/*.whl"))


def test_a_bundle_is_all_that_a_lab_needs(nowhere: str, empty: Path) -> None:
    bundle = empty / "underpass.bundle"
    file = empty / "lab.yaml"
    file.write_text(LAB)
    full = LabCommand(file)
    written = full.json("bundle", "create", str(bundle))
    assert bundle.stat().st_size > 100 << 20
    _take_wheels(empty)

    home = empty / "home"
    home.mkdir()
    settings = {"HOME": str(home), "UNDERPASS_CACHE": "", "UNDERPASS_STATE": ""}
    xdg = {name: "" for name in os.environ if name.startswith("XDG_")}
    apart = Apart(file, tuple({**settings, **xdg}.items()))
    assert not list(home.iterdir())
    loaded = apart.json("bundle", "load", str(bundle))
    assert set(loaded["artifacts"]) == set(written["artifacts"])
    bundle.unlink()
    try:
        outcome = apart.json("up")
        built = next(step for step in outcome["steps"] if step["id"] == "artifacts")
        assert built["changed"] == 0, "an artifact was built, not taken from the bundle"
        assert apart.check("kubectl", "get", "nodes", "-o", "name").stdout == "node/node-1\n"
    finally:
        apart.check("down")

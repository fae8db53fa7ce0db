"""The workflow that docs/ci.md gives to copy, run as a runner runs it: step by step, on the suite's lab."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import builds
from lab.cluster import Cluster
from lab.paths import ROOT
from tests.lab.command import LabCommand

#: A project as the workflow expects one: an image of its own, manifests, tests.
CONTAINERFILE = "FROM oci-archive:{base}\nLABEL of=mine\n"
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "app"},
    "spec": {
        "selector": {"matchLabels": {"app": "app"}},
        "template": {
            "metadata": {"labels": {"app": "app"}},
            "spec": {"containers": [{"name": "app", "image": "example.org/app:ci"}]},
        },
    },
}
OWN_TESTS = """\
#!/bin/sh -eu
test -r "$KUBECONFIG"
lab -f lab.yaml kubectl get deployment app -o 'jsonpath={.status.readyReplicas}' | tee ready
"""
STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'


def _workflow() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.S)
    workflow: dict[str, Any] = yaml.safe_load(blocks[0])
    return workflow


JOB = _workflow()["jobs"]["lab"]
STEPS = [step for step in JOB["steps"] if "run" in step]


class Runner:
    """A folder with the user's project, and what GitHub's runner does for each step."""

    def __init__(self, folder: Path, lab_file: Path) -> None:
        self.folder = folder
        (folder / "lab.yaml").write_text(lab_file.read_text())
        (folder / JOB["env"]["UNDERPASS"]).symlink_to(ROOT)
        base = builds.locate()["images"].path / "pause.tar"
        (folder / "Containerfile").write_text(CONTAINERFILE.format(base=base))
        (folder / "deploy").mkdir()
        (folder / "deploy" / "app.yaml").write_text(yaml.safe_dump(DEPLOYMENT))
        (folder / "run-tests").write_text(OWN_TESTS)
        (folder / "run-tests").chmod(0o755)
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        (folder / "paths").touch()

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        paths = [*(self.folder / "paths").read_text().split(), os.environ.get("PATH", os.defpath)]
        env = {
            **os.environ,
            "UNDERPASS": JOB["env"]["UNDERPASS"],  # its cache stays the suite's: nothing is to be built
            "GITHUB_PATH": str(self.folder / "paths"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "PATH": os.pathsep.join(paths),
        }
        argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(
            argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600, check=False
        )


@pytest.fixture
def runner(tmp_path: Path, lab_file: Path, command: LabCommand, cluster: Cluster) -> Any:
    yield Runner(tmp_path, lab_file)
    cluster.kubectl("delete", "deployment/app", "--ignore-not-found", "--wait=true")
    subprocess.run(["rm", "-rf", "--one-file-system", str(tmp_path / "images")], check=True)


def test_the_workflow_to_copy_does_what_it_says(runner: Runner) -> None:
    for step in STEPS:
        if step["run"].endswith(" down"):  # the lab is the suite's; how it goes is tested elsewhere
            continue
        done = runner.run(step["run"])
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    assert (runner.folder / "ready").read_text() == "1"
    assert "testcase" in (runner.folder / "reports" / "verify.xml").read_text()
    assert list((runner.folder / "reports").glob("*.tar.gz"))

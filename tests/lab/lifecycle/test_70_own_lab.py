"""The suite's own lab: taken down also after a failure, and the failure leaves a report to study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from lab import paths
from lab.labfile import parse
from lab.render import render
from tests.lab.command import LIMIT
from tests.lab.conftest import LAB_ID
from tests.lab.hoststate import left_by, seen

OTHER = f"{LAB_ID}-fails"

FAILS = """\
def test_fails(lab):
    assert lab.id == "another"
"""


def test_a_failed_suite_takes_its_lab_down_and_leaves_a_report(tmp_path: Path) -> None:
    (tmp_path / "test_fails.py").write_text(FAILS)
    words = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "tests.lab.conftest"]
    words += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path / "test_fails.py")]
    other, _ = parse(f"apiVersion: underpass.dev/v1\nkind: Lab\nid: {OTHER}\n")
    assert other is not None
    before = seen()
    done = subprocess.run(
        words,
        cwd=paths.ROOT,
        env={**os.environ, "UNDERPASS_TEST_LAB": OTHER},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    told = done.stdout + done.stderr
    found = re.search(rf"{re.escape(str(paths.ROOT))}/reports/\S+", told)
    assert found, told
    archive = Path(found[0])
    try:
        assert done.returncode == 1, told
        assert "1 failed" in done.stdout, told
        with tarfile.open(archive) as tar:
            names = {member.name.partition("/")[2] for member in tar.getmembers()}
        assert {"nodes/node-1/journal.txt", "cluster/nodes.yaml"} <= names
    finally:
        archive.unlink()
    assert not paths.lab_home(OTHER).exists()
    assert left_by(render(other), before) == []

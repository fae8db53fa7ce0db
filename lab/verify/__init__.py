"""`lab verify`: the promises of a running lab, proved by the tests of tests/lab/verify.

The same code runs in the project's own suite. It knows a lab by its rendered files and ssh alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import paths
from lab.errors import ExitCode, LabError
from lab.render import Rendered

SUITE = paths.ROOT / "tests" / "lab" / "verify"


@dataclass(frozen=True)
class Promise:
    """One promise: `area`, what it says, `result` (passed, failed, error, skipped), the evidence."""

    area: str
    promise: str
    result: str
    evidence: str

    @property
    def held(self) -> bool:
        return self.result == "passed"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def areas() -> list[str]:
    """The areas there are, by the names of the suite's files."""
    return sorted(path.stem.removeprefix("test_") for path in SUITE.glob("test_*.py"))


def run(lab: Rendered, chosen: Sequence[str], junit: Path | None = None) -> list[Promise]:
    """Run the suite's chosen areas on `lab`. Raises `LabError` if the suite itself could not run."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "promises.json"
        command = [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "lab.verify.plugin", "-p", "no:cacheprovider"),
            *("--rootdir", str(paths.ROOT), "--lab", lab.id, "--promises", str(results)),
            *(["--junit-xml", str(junit)] if junit else []),
            *(str(SUITE / f"test_{area}.py") for area in chosen),
        ]
        done = subprocess.run(
            command, cwd=paths.ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1) or not results.exists():
            raise LabError(
                "the verification suite could not run",
                details=(done.stdout + done.stderr).strip().splitlines()[-20:],
                hint="run `make setup` again; the project's checkout must be complete",
                code=ExitCode.NOT_VERIFIED,
            )
        return [Promise(**item) for item in json.loads(results.read_text())]

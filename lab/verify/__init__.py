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
#: What stands on what: a reader looks for the first line that does not hold.
ORDER = ("kernel", "cluster", "network", "policy", "services", "redirect", "mesh")


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

    @property
    def applies(self) -> bool:
        """Whether it is promised of this lab: one node promises nothing between nodes."""
        return self.result != "skipped"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def all_hold(promises: Sequence[Promise]) -> bool:
    """Whether everything that is promised of this lab holds; nothing promised is nothing held."""
    promised = [promise for promise in promises if promise.applies]
    return bool(promised) and all(promise.held for promise in promised)


def area_of(path: Path) -> str:
    """The area of a file of tests: the first word of its name, so that an area may have several files."""
    return path.stem.removeprefix("test_").partition("_")[0]


def areas() -> list[str]:
    """The areas there are, by the names of the suite's files, from the ground up."""
    found = {area_of(path) for path in SUITE.glob("test_*.py")}
    return [*(area for area in ORDER if area in found), *sorted(found - set(ORDER))]


def run(lab: Rendered, chosen: Sequence[str], junit: Path | None = None) -> list[Promise]:
    """Run the suite's chosen areas on `lab`. Raises `LabError` if the suite itself could not run."""
    files = sorted(path for path in SUITE.glob("test_*.py") if area_of(path) in chosen)
    return prove(lab, sorted(files, key=lambda path: chosen.index(area_of(path))), junit=junit)


def prove(
    lab: Rendered, files: Sequence[Path], *, plugins: Sequence[str] = (), junit: Path | None = None
) -> list[Promise]:
    """Run test files on `lab`, a promise each test. Raises `LabError` if they could not be run."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "promises.json"
        command = [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "lab.verify.plugin", "-p", "no:cacheprovider"),
            *(word for plugin in plugins for word in ("-p", plugin)),
            *("--import-mode=importlib" if plugins else "--import-mode=prepend",),
            *("--rootdir", str(paths.ROOT), "--lab", lab.id, "--promises", str(results)),
            *(["--junit-xml", str(junit.absolute())] if junit else []),
            *map(str, files),
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

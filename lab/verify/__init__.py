"""`lab verify`: the promises of a running lab, proved by the tests of tests/lab/verify.

The same code runs in the project's own suite. It knows a lab by its rendered files and ssh alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
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


#: Called with each promise as soon as it is known, and how many there are.
Told = Callable[[Promise, int], None]


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


def run(
    lab: Rendered, chosen: Sequence[str], junit: Path | None = None, told: Told | None = None
) -> list[Promise]:
    """Run the suite's chosen areas on `lab`. Raises `LabError` if the suite itself could not run."""
    files = sorted(path for path in SUITE.glob("test_*.py") if area_of(path) in chosen)
    return prove(lab, sorted(files, key=lambda path: chosen.index(area_of(path))), junit=junit, told=told)


def prove(
    lab: Rendered,
    files: Sequence[Path],
    *,
    plugins: Sequence[str] = (),
    junit: Path | None = None,
    told: Told | None = None,
) -> list[Promise]:
    """Run test files on `lab`, a promise each test. Raises `LabError` if they could not be run.

    An interrupt lets them take back what they made in the cluster before it goes on to the caller, whom
    `told` has given all that was found by then.
    """
    found: list[Promise] = []
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as lines, tempfile.TemporaryFile("w+") as output:
        command = [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "lab.verify.plugin", "-p", "no:cacheprovider"),
            *(word for plugin in plugins for word in ("-p", plugin)),
            *("--import-mode=importlib" if plugins else "--import-mode=prepend",),
            *("--rootdir", str(paths.ROOT), "--lab", lab.id, "--promises", str(writing)),
            *(["--junit-xml", str(junit.absolute())] if junit else []),
            *map(str, files),
        ]
        # In a session of its own ctrl-C reaches it once, by us: a second would break off its clearing up.
        suite = subprocess.Popen(
            command,
            cwd=paths.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        try:
            of = json.loads(next(lines, "0"))
            for line in lines:
                found.append(Promise(**json.loads(line)))
                if told:
                    told(found[-1], of)
            status = suite.wait()
        except BaseException:
            _interrupt(suite)
            raise
        if status not in (0, 1):
            output.seek(0)
            raise LabError(
                "the verification suite could not run",
                details=output.read().strip().splitlines()[-20:],
                hint="run `make setup` again; the project's checkout must be complete",
                code=ExitCode.NOT_VERIFIED,
            )
    return found


def _interrupt(suite: subprocess.Popen[bytes]) -> None:
    suite.send_signal(signal.SIGINT)
    try:
        suite.wait()
    except BaseException:
        suite.kill()
        raise

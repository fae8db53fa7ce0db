"""The `lab` command as a user calls it: a program with a status, stdout and stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.paths import ROOT

#: What `make test` hands down to the suite, and another `make` must not take from it.
OF_THE_SUITE = {
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "T",
    "UNDERPASS_PHASES",
    "UNDERPASS_SIZE",
    "UNDERPASS_VMS",
}

LIMIT = 1800  # seconds: no call of the suite may hang


@dataclass(frozen=True)
class LabCommand:
    """``lab -f FILE ...`` with `env` added to the environment."""

    file: Path
    env: tuple[tuple[str, str], ...] = ()

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "lab", "-f", str(self.file), *arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **dict(self.env)}

    def __call__(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end, whatever its status."""
        return subprocess.run(
            self.argv(*arguments),
            cwd=ROOT,
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def check(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it; a status other than 0 fails the test with all that it printed."""
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, (
            f"lab {' '.join(arguments)}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def json(self, *arguments: str) -> Any:
        """The one JSON document that it prints."""
        return json.loads(self.check(*arguments, "-o", "json", "--progress=none").stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it in a process group of its own and do not wait."""
        return subprocess.Popen(
            self.argv(*arguments),
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

"""What every command needs: which lab is meant, how to show progress, how to write results."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab import paths
from lab import render as rendering
from lab.errors import ExitCode, die
from lab.labfile import load
from lab.output import Format
from lab.progress import ProgressMode, reporter
from lab.render import Rendered
from lab.steps import Steps

KEPT_RUNS = 10

#: Settings of the user's that hold for root too: where things are, how registries are reached.
_KEPT = re.compile(
    r"(UNDERPASS|PIP|GO|SSL_CERT|VAGRANT)[A-Z_]*$|.*_(proxy|PROXY)$|(NO_COLOR|TERM|CI|PYTHONPYCACHEPREFIX)$"
)


@dataclass
class Context:
    """The global options of one call of ``lab``."""

    file: Path | None = None
    lab_id: str | None = None
    output: Format = Format.TABLE
    progress: ProgressMode = "auto"
    debug: bool = False

    def lab_file(self) -> Path:
        """The lab file: the one named, else ./lab.yaml, else the project's default."""
        if self.file:
            return self.file
        if self.lab_id:
            kept = paths.lab_home(self.lab_id) / "lab.yaml"
            if kept.exists():
                return kept
            die(
                f"there is no lab {self.lab_id} here",
                hint="`lab status --all` lists the labs; `lab up -f FILE` makes one",
                code=ExitCode.NOT_THERE,
            )
        here = Path("lab.yaml")
        return here if here.exists() else paths.ROOT / "lab.yaml"

    def lab(self) -> Rendered:
        """The lab as it was last brought up. Fails if it was never made."""
        lab_id = self.lab_id or load(self.lab_file()).id
        lab = rendering.read(lab_id)
        if lab is None:
            die(
                f"there is no lab {lab_id} here",
                hint="`lab up` makes it; `lab status --all` lists the labs",
                code=ExitCode.NOT_THERE,
            )
        return lab

    def has_lab(self) -> bool:
        """Whether the lab meant was ever brought up."""
        lab_id = self.lab_id or load(self.lab_file()).id
        return rendering.read(lab_id) is not None

    def steps(self, logs: Path | None = None) -> Steps:
        """A fresh list of steps, shown as the user asked, logging under `logs`."""
        return Steps(reporter(self.progress, sys.stderr), logs)

    def logs_of(self, lab_id: str, verb: str) -> Path:
        """A new folder for the logs of one run of a command; only the newest few runs are kept."""
        folder = paths.state() / "logs" / lab_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        for old in sorted(folder.iterdir())[:-KEPT_RUNS]:
            for log in old.iterdir():
                log.unlink(missing_ok=True)
            old.rmdir()
        return folder / f"{stamp}-{verb}"


def become_root() -> None:
    """Where the user is not root: run this same command by sudo, with the user's own directories."""
    if os.geteuid() == 0:
        return
    import shutil

    if not shutil.which("sudo"):
        die("this needs root, and there is no sudo", hint="run it as root", code=ExitCode.HOST)
    for name, folder in (("UNDERPASS_CACHE", paths.cache()), ("UNDERPASS_STATE", paths.state())):
        folder.mkdir(parents=True, exist_ok=True)  # as the user: ~/.cache and the like stay theirs
        os.environ[name] = str(folder)
    # What root compiles does not go into the user's checkout, where the user could not remove it.
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(paths.cache() / "tools" / "pycache"))
    # By name: values, such as a proxy's password, would show in the list of processes.
    kept = ",".join(name for name in os.environ if _KEPT.match(name))
    words = ["sudo", f"--preserve-env={kept}", "--", sys.executable, "-m", "lab", *sys.argv[1:]]
    os.execvp("sudo", words)  # noqa: S606

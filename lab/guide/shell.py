"""A shell as a learner has it: variables and the current folder stay from one command to the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import paths

#: Seconds that a command may take; `lab up` of a lab that is up is the longest.
LIMIT = 180.0

#: $1 is a folder of ours, $2 the command. Whatever it sets is exported, and so outlives it.
_SCRIPT = """
set -a
[ ! -f "$1/variables" ] || . "$1/variables"
cd "$(cat "$1/folder")" || exit
eval "$2"
status=$?
export -p >"$1/variables"
pwd >"$1/folder"
exit $status
"""


@dataclass(frozen=True)
class Finished:
    """A command's exit status and what it printed, stdout and stderr as they came."""

    status: int
    output: str


class Shell:
    """Commands run by bash in the project's folder, with `lab` in the path and meaning one lab.

    slowness: how many times longer than planned a command may take, as the lab's provider says.
    """

    def __init__(self, lab_id: str, slowness: float = 1.0) -> None:
        self.slowness = slowness
        self._state = tempfile.TemporaryDirectory(prefix="underpass-guide-")
        self._folder = Path(self._state.name)
        (self._folder / "folder").write_text(f"{paths.ROOT}\n")
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "UNDERPASS_LAB": lab_id,
            "NO_COLOR": "1",
        }

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *fault: object) -> None:
        self._state.cleanup()

    def run(self, command: str, seconds: float = LIMIT) -> Finished:
        """Run `command` to its end. After `seconds`, times `slowness`, it is ended, with status 124 as of
        timeout(1).
        """
        argv = ["bash", "--noprofile", "--norc", "-c", _SCRIPT, "guide", str(self._folder), command]
        # A file, not a pipe: a program that the command leaves in the background may keep it open.
        with tempfile.TemporaryFile() as file:
            process = subprocess.Popen(
                argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout=seconds * self.slowness)
            except subprocess.TimeoutExpired:
                status = 124
            except BaseException:
                self._end(process)
                raise
            if status == 124:
                self._end(process)
            file.seek(0)
            return Finished(status, file.read().decode(errors="replace"))

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()

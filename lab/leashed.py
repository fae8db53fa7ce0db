"""Runs a program that ends when its parent does: `python -m lab.leashed PIDFILE PROGRAM ARGUMENT...`

For programs that somebody else's library starts: `lab` killed at any moment must not leave one at
work on a lab that nobody holds the lock of. PIDFILE tells the parent whom to ask to end earlier.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Become the program. Its process id is ours."""
    parent = os.getppid()
    pid_file, *command = argv
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit("cannot ask to be told of the parent's end")
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    Path(pid_file).write_text(str(os.getpid()), encoding="ascii")
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])

"""Programs of a build that end with us.

A root file system in the making runs many programs (apt, dpkg, maintainer scripts) that would go on
writing after a kill of `lab`. In a process namespace of their own they all end at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: The kernel kills the program when the thread that started it ends, whatever ended it.
_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
_NAMESPACES = ("unshare", "--fork", "--kill-child=KILL", "--pid", "--mount", "--mount-proc", "--")


def with_us(argv: Sequence[str | Path]) -> list[str | Path]:
    """The command line that runs `argv` and kills it when we die."""
    return [*_WITH_US, *argv]


def enclosed(argv: Sequence[str | Path]) -> list[str | Path]:
    """The command line that runs `argv` with all its descendants enclosed; needs root.

    Process and mount namespaces of its own: no process and no mount outlives it.
    """
    return [*_WITH_US, *_NAMESPACES, *argv]

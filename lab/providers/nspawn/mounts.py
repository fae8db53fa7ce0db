"""The mounts that this process sees, and taking one off."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MNT_DETACH = 2


def below(top: Path, mountinfo: str | None = None) -> list[Path]:
    """Mount points at or below `top`, innermost (last mounted) first."""
    text = mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text("utf-8")
    points = [Path(unescape(line.split()[4])) for line in text.splitlines()]
    return [point for point in reversed(points) if point == top or top in point.parents]


def detach(point: Path) -> None:
    """Take the topmost mount at `point` off at once; what still uses it keeps it to itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), _MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


def unescape(path: str) -> str:
    """A path as mountinfo writes it: octal escapes for space, tab, newline and backslash."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path

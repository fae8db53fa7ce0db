"""Disk space: asked for before the work, and told plainly when it runs out in the middle."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import ExitCode, LabError, die

_HINT = "free some space (`lab build --clean` removes artifacts of other releases), or set UNDERPASS_CACHE"
_TEXT = "no space left on device"


def require(folder: Path, needed: int, what: str) -> None:
    """Fail with a `LabError` unless `needed` bytes are free where `folder` is (or will be)."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        die(
            f"not enough disk space for {what}: {human(needed)} needed, {human(free)} free at {there}",
            hint=_HINT,
            code=ExitCode.HOST,
        )


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Turn 'no space left', from us or from a program that we ran, into a `LabError` that says so."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder, what) from fault
    except LabError as fault:
        if any(_TEXT in line.lower() for line in fault.details):
            raise _full(folder, what, fault.details) from fault
        raise


def human(size: int) -> str:
    """Bytes as people write them: 512 MiB, 1.5 GiB."""
    mebibytes = size / (1 << 20)
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


def _full(folder: Path, what: str, details: list[str] | None = None) -> LabError:
    return LabError(
        f"no space left on the disk while working on {what}, in {folder}; what was half made is removed",
        details=details or [],
        hint=_HINT,
        code=ExitCode.HOST,
    )

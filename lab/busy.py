"""One command at a time changes a lab."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from lab import paths
from lab.errors import ExitCode, die
from lab.files import write_atomic


@contextmanager
def alone(lab_id: str) -> Iterator[None]:
    """Hold the lab's lock; a second holder is told at once who has it (exit status BUSY).

    The kernel drops the lock with its process, so a killed command leaves nothing to clear.
    """
    folder = paths.state() / "labs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    holder = folder / f".{lab_id}.holder"
    lock = FileLock(folder / f".{lab_id}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _who(holder.read_text() if holder.exists() else "")
        die(
            f"another command is at work on lab {lab_id}{who}",
            hint="wait for it to end, or end it with ctrl-C where it runs; then try again",
            code=ExitCode.BUSY,
        )
    try:
        write_atomic(holder, json.dumps({"pid": os.getpid(), "command": ["lab", *sys.argv[1:]]}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(text: str) -> str:
    try:
        data = json.loads(text)
        return f": `{' '.join(data['command'])}` (process {data['pid']})"
    except (ValueError, KeyError, TypeError):
        return ""

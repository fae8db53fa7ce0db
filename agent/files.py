"""Small state files: written whole or not at all, and surely on disk when the call returns."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


def write_durable(path: Path, data: object) -> None:
    """Replace `path` by `data` as JSON, mode 0600.

    A kill or a power loss at any moment leaves the old content or the new, never a part of it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

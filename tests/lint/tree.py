"""The project's own files: what a clone holds, without what tools leave beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lab.paths import ROOT

#: Folders that are not the project's; .gitignore names them too.
LEFT_OUT = {".git", ".venv", ".vagrant", "__pycache__", "reports", ".hypothesis", ".import_linter_cache"}


def files(below: Path = ROOT) -> Iterator[Path]:
    """Every file of the project below a folder, by name."""
    for folder, folders, names in os.walk(below):
        folders[:] = sorted(
            name for name in folders if name not in LEFT_OUT and not name.endswith((".egg-info", "_cache"))
        )
        for name in sorted(names):
            yield Path(folder, name)


def text(path: Path) -> str:
    """The file as text; empty if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""

"""Digests of files that a recipe is made from, as inputs for its key."""

from __future__ import annotations

import hashlib
from pathlib import Path


def tree_digest(*sources: Path) -> str:
    """One sha256 over files and folders: names below each source, executable bits, contents."""
    whole = hashlib.sha256()
    for source in sources:
        if source.is_dir():
            files = sorted(path for path in source.rglob("*") if path.is_file())
        else:
            files = [source]
        for file in files:
            name = file.relative_to(source if source.is_dir() else source.parent)
            executable = "x" if file.stat().st_mode & 0o100 else "-"
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            whole.update(f"{name}\0{executable}\0{content}\n".encode())
    return whole.hexdigest()

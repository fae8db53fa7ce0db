"""The lock file: the versions that this release builds and runs (`lab/builds/lock.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

LOCK_FILE = Path(__file__).parent / "builds" / "lock.yaml"


@dataclass(frozen=True)
class Lock:
    """`versions`: part -> version. `raw`: the whole document, for the build recipes."""

    versions: dict[str, str]
    raw: dict[str, Any]


@cache
def lock() -> Lock:
    """The lock file of this checkout."""
    raw: dict[str, Any] = yaml.safe_load(LOCK_FILE.read_text(encoding="utf-8"))
    return Lock(versions=dict(raw["versions"]), raw=raw)

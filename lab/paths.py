"""Where Underpass keeps things: artifacts in the user's cache, labs in the user's state directory."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

#: The checkout: the code finds playbooks, build recipes and tests beside itself.
ROOT = Path(__file__).resolve().parent.parent


def cache() -> Path:
    """The artifact cache, shared by all labs. `UNDERPASS_CACHE` overrides the user's cache directory."""
    return Path(os.environ.get("UNDERPASS_CACHE") or platformdirs.user_cache_path("underpass"))


def state() -> Path:
    """Where labs keep their files. `UNDERPASS_STATE` overrides the user's state directory."""
    return Path(os.environ.get("UNDERPASS_STATE") or platformdirs.user_state_path("underpass"))


def lab_home(lab_id: str) -> Path:
    """The one folder of a lab: keys, rendered files, logs, nodes' disks."""
    return state() / "labs" / lab_id

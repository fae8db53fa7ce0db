"""Merging a lab's kubeconfig into the user's own. Only ever on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lab.errors import ExitCode, die
from lab.files import write_atomic

_LISTS = ("clusters", "users", "contexts")


def merge(own: Path, into: Path) -> None:
    """Add the cluster, user and context of `own` to `into`, replacing entries of the same names.

    Everything else in `into` stays, its current context too; a file that is not a kubeconfig is refused.
    """
    lab = _read(own)
    theirs: dict[str, Any] = (
        _read(into) if into.exists() else {"apiVersion": "v1", "kind": "Config", "preferences": {}}
    )
    if theirs.get("kind") != "Config":
        die(f"{into} is not a kubeconfig; it was left alone", code=ExitCode.USAGE)
    for key in _LISTS:
        ours = {entry["name"]: entry for entry in lab[key]}
        kept = [entry for entry in theirs.get(key) or [] if entry["name"] not in ours]
        theirs[key] = [*kept, *ours.values()]
    theirs.setdefault("current-context", lab["current-context"])
    into.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(into, yaml.safe_dump(theirs, sort_keys=False))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as fault:
        die(f"cannot read {path} as a kubeconfig: {fault}", code=ExitCode.USAGE)
    if not isinstance(data, dict):
        die(f"{path} is not a kubeconfig; it was left alone", code=ExitCode.USAGE)
    return data

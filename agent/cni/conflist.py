"""The network configuration that tells the runtime of this plugin: there when, and only when, ADD is served.

It says version 1.0.0, since containerd 1.7 refuses results of 1.1.0.
"""

from __future__ import annotations

import json
from pathlib import Path

PLUGIN = "underpass-cni"
NETWORK = "underpass"
VERSION = "1.0.0"


def content() -> str:
    """The file's text."""
    return (
        json.dumps({"cniVersion": VERSION, "name": NETWORK, "plugins": [{"type": PLUGIN}]}, indent=2) + "\n"
    )


def install(path: Path) -> bool:
    """Write the file if it is not there as it should be; returns whether it was written.

    The runtime watches the folder: the file appears whole or not at all.
    """
    text = content()
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o644)
    fresh.rename(path)
    return True

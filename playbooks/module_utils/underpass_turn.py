# SPDX-License-Identifier: Apache-2.0
"""One module at a time on a node.

A run that is killed on the controller leaves its last module at work on the node. The next run's modules
wait here until that one is done, instead of writing the same files beside it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

#: How long an earlier run, cut off on the controller, may still be at work here.
TURN_SECONDS = 120.0
PAUSE = 0.1  # seconds between two tries
FILE = "run/underpass-turn.lock"


class NoTurn(Exception):
    """Another module is still at work; the text says for how long this one waited."""


def take(seconds: float, root: str = "/") -> int:
    """Wait at most so many seconds for the node's turn; its descriptor. Held until the process ends."""
    path = Path(root) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return turn
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(turn)
                raise NoTurn(
                    f"an earlier run is still at work on this node after {seconds:.0f} s; it holds {path}"
                ) from None
        time.sleep(PAUSE)


def take_or_fail(module: Any) -> None:
    """The same for a module of Ansible's, which fails with those words."""
    try:
        take(TURN_SECONDS)
    except NoTurn as fault:
        module.fail_json(msg=str(fault))

"""Waiting for a condition, with a deadline and a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

PAUSE = 0.2
#: How many times longer than planned to wait: the lab's nodes may be slower than the host (`slow_down`).
_factor = [1.0]


def slow_down(factor: float) -> None:
    """Wait `factor` times as long from now on."""
    _factor[0] = factor


def until(
    condition: Callable[[], Value | None], what: str, seconds: float = 60, pause: float = PAUSE
) -> Value:
    """Ask `condition` until it gives something true; fails with `what` and its last answer.

    pause: seconds between two questions; more where to ask costs what is waited for its time, as on slow
    nodes.
    """
    seconds, pause = seconds * _factor[0], pause * _factor[0]
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s; last answer: {answer!r}")
        time.sleep(pause)

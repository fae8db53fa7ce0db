"""Trying again until it works, never waiting for a length of time: the one place that knows the library."""

from __future__ import annotations

from collections.abc import Callable

import stamina.instrumentation
from stamina import retry_context

__all__ = ["retry_context", "until"]

#: What is waited for is shown in the step; the library's own log lines would double it.
stamina.instrumentation.set_on_retry_hooks([])


class _NotYet(Exception):
    """The condition does not hold yet."""


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask `condition` until it holds or `seconds` have passed; returns whether it held."""
    try:
        for attempt in retry_context(
            on=_NotYet, attempts=None, timeout=seconds, wait_initial=0.01, wait_max=0.2, wait_jitter=0
        ):
            with attempt:
                if not condition():
                    raise _NotYet
    except _NotYet:
        return False
    return True

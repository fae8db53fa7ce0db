"""Waiting for a condition of the host, never for a length of time."""

from __future__ import annotations

from collections.abc import Callable

import stamina


class _NotYetError(Exception):
    """What is waited for is not so yet."""


def until(condition: Callable[[], bool], seconds: float, *, longest_pause: float = 0.2) -> bool:
    """Ask `condition` until it holds or `seconds` have passed; returns whether it held."""
    try:
        for attempt in stamina.retry_context(
            on=_NotYetError,
            attempts=None,
            timeout=seconds,
            wait_initial=0.01,
            wait_max=longest_pause,
            wait_jitter=0,
        ):
            with attempt:
                if not condition():
                    raise _NotYetError
                return True
    except _NotYetError:
        return False
    return False

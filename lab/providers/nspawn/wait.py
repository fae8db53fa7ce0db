"""Waiting for a condition of the host, never for a length of time."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_delay, wait_exponential


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask `condition` until it holds or `seconds` have passed; returns whether it held."""
    asking = Retrying(
        retry=retry_if_not_result(bool),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(multiplier=0.01, max=0.2),
    )
    try:
        return asking(condition)
    except RetryError:
        return False

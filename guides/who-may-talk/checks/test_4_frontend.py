"""Step 4: the frontend gets in, nobody else."""

from __future__ import annotations

from collections.abc import Callable


def test_the_frontend_gets_in(reach: Callable[..., str]) -> None:
    """The pod frontend gets an answer from http://orders/"""
    seen = reach("shop", "frontend", "http://orders/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"


def test_reports_does_not(reach: Callable[..., str]) -> None:
    """The pod reports gets no answer from http://orders/"""
    seen = reach("shop", "reports", "http://orders/")
    assert seen == "000", f"it got {seen or 'nowhere: there is no such pod'}"

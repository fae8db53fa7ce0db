"""Step 6: the frontend calls orders by name, and nobody else."""

from __future__ import annotations

from collections.abc import Callable


def test_the_frontend_still_calls_orders(reach: Callable[..., str]) -> None:
    """The pod frontend gets an answer from http://orders/"""
    seen = reach("shop", "frontend", "http://orders/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}; does it still find the name?"


def test_the_frontend_calls_nobody_else(reach: Callable[..., str]) -> None:
    """The pod frontend gets no answer from http://kiosk.street.svc/"""
    seen = reach("shop", "frontend", "http://kiosk.street.svc/")
    assert seen == "000", f"it got {seen or 'nowhere: there is no such pod'}"


def test_the_kiosk_is_open_to_others(reach: Callable[..., str]) -> None:
    """The pod passer still gets an answer from http://kiosk.street.svc/"""
    seen = reach("street", "passer", "http://kiosk.street.svc/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}; the kiosk itself is closed"

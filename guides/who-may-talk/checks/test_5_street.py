"""Step 5: the passer-by gets in, by a policy of Cilium's kind."""

from __future__ import annotations

from collections.abc import Callable


def test_the_passer_by_gets_in(reach: Callable[..., str]) -> None:
    """The pod passer of namespace street gets an answer from http://orders.shop.svc/"""
    seen = reach("street", "passer", "http://orders.shop.svc/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"


def test_the_kiosk_does_not(reach: Callable[..., str]) -> None:
    """The pod kiosk of namespace street gets no answer"""
    seen = reach("street", "kiosk", "http://orders.shop.svc/")
    assert seen == "000", f"it got {seen or 'nowhere: there is no such pod'}"

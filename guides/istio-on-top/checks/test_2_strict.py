"""Step 2: who has no certificate of the mesh gets no answer."""

from __future__ import annotations

from collections.abc import Callable


def test_the_outsider_gets_no_answer(reach: Callable[..., str]) -> None:
    """The pod outsider of namespace plain gets no answer from http://web.meshed.svc/"""
    seen = reach("plain", "outsider", "http://web.meshed.svc/")
    assert seen == "000", f"it got {seen or 'nowhere: there is no such pod'}; plain HTTP is still taken"


def test_the_client_gets_an_answer(reach: Callable[..., str]) -> None:
    """The pod client still gets an answer from http://web/"""
    seen = reach("meshed", "client", "http://web/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"

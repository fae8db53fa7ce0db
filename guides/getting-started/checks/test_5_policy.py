"""Step 5: friends get through, others do not."""

from __future__ import annotations

from collections.abc import Callable


def test_the_friend_gets_through(reach: Callable[..., str]) -> None:
    """The pod friend gets an answer from http://web/"""
    seen = reach("hello", "friend", "http://web/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"


def test_the_guest_does_not(reach: Callable[..., str]) -> None:
    """The pod guest gets no answer from http://web/"""
    seen = reach("hello", "guest", "http://web/")
    assert seen == "000", f"it got {seen or 'nowhere: there is no such pod'}; no policy keeps it out"

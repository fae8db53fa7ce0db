"""Step 6: the guest is a friend, and the policy still stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_the_guest_gets_through(reach: Callable[..., str]) -> None:
    """The pod guest gets an answer from http://web/"""
    seen = reach("hello", "guest", "http://web/")
    assert seen == "200", f"it got {seen or 'nowhere: there is no such pod'}"


def test_the_policy_is_as_it_was(objects: Callable[..., list[dict[str, Any]]]) -> None:
    """The policy only-friends is there, and still lets in role=friend alone"""
    policies = objects("networkpolicy", "only-friends", "-n", "hello")
    assert policies, "namespace hello has no NetworkPolicy only-friends"
    wanted = [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]
    assert policies[0]["spec"]["ingress"] == wanted, f"it now says {policies[0]['spec']['ingress']}"

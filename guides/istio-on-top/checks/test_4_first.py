"""Which versions answer."""

from __future__ import annotations

from collections.abc import Callable

ASK = "for i in $(seq 30); do curl -s --max-time 5 http://web/; done"


def test_which_versions_answer(kubectl: Callable[..., str]) -> None:
    """All answers come from version 1"""
    seen = kubectl("exec", "-n", "meshed", "client", "-c", "shell", "--", "sh", "-c", ASK).splitlines()
    counts = {answer: seen.count(answer) for answer in sorted(set(seen))}
    assert set(counts) == {"web v1"}, f"of 30 requests: {counts or 'no answer'}"

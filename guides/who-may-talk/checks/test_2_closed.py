"""Step 2: the shop is closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("client", ["frontend", "reports"])
def test_nobody_gets_in(reach: Callable[..., str], client: str) -> None:
    """The pod gets no answer from http://orders/"""
    seen = reach("shop", client, "http://orders/")
    assert seen == "000", f"{client} got {seen or 'nowhere: there is no such pod'}; no policy keeps it out"

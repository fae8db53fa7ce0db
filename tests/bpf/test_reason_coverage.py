"""Every reason code is hit by some test of this suite."""

from __future__ import annotations

import pytest

from datapath import reasons
from tests.bpf import counting


@pytest.mark.last
def test_every_reason_is_hit(request: pytest.FixtureRequest) -> None:
    ran = {item.path.name for item in request.session.items if item.path.parent == request.path.parent}
    there = {path.name for path in request.path.parent.glob("test_*.py")}
    if ran != there or request.config.option.keyword or request.config.option.lf:
        pytest.skip("only a run of the whole suite can tell")
    missed = {reason.label for reason in reasons.table()} - counting.hit
    assert not missed, f"no test hits {sorted(missed)}"

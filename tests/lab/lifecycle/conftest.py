"""What happens to the lab under test here, happens to all tests after: a failure is to stay one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.command import LabCommand
from tests.lab.conftest import FAILED


@pytest.fixture(autouse=True)
def _mended_after_a_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring the lab up again where a test failed: it may be off, or half of what it was."""
    if "lab" not in request.fixturenames:
        yield
        return
    command: LabCommand = request.getfixturevalue("command")
    yield
    if request.node.stash.get(FAILED, False):
        command("up", "--progress=none")

"""Walking guides on the lab under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.guide.shell import Shell
from lab.render import Rendered


@pytest.fixture(scope="session")
def shell(lab: Rendered) -> Iterator[Shell]:
    """A learner's shell, for the whole session."""
    with Shell(lab.id) as shell:
        yield shell

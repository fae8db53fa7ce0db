"""Walking guides and other documents on the lab under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.guide.shell import Shell
from lab.providers import provider
from lab.render import Rendered
from tests.lab.command import OF_THE_SUITE


@pytest.fixture(scope="session")
def shell(lab: Rendered) -> Iterator[Shell]:
    """A reader's shell, for the whole session."""
    with pytest.MonkeyPatch.context() as environment:
        for name in OF_THE_SUITE:
            environment.delenv(name, raising=False)
        shell = Shell(lab.id, provider(lab).slowness)
    with shell:
        yield shell

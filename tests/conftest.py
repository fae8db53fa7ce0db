"""Options and the header of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import sizes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab", help="use this running lab instead of bringing one up")


def pytest_report_header() -> str:
    return sizes.header()


class Failures:
    """Writes down what failed, for CI, which says it at its end."""

    def __init__(self, record: Path) -> None:
        self.record = record

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.record.open("a", encoding="utf-8") as lines:
                lines.write(f"{report.nodeid} ({report.when})\n")


def pytest_configure(config: pytest.Config) -> None:
    # Taken out: some tests run pytest themselves, and want it to fail.
    record = os.environ.pop("UNDERPASS_FAILURES", "")
    if record:
        config.pluginmanager.register(Failures(Path(record)))

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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """CI says at its end what failed."""
    record = os.environ.get("UNDERPASS_FAILURES")
    if record and report.failed:
        with Path(record).open("a", encoding="utf-8") as lines:
            lines.write(f"{report.nodeid} ({report.when})\n")

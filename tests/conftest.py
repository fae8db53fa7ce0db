"""Options and the header of the whole suite."""

from __future__ import annotations

import pytest

from tests import sizes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab", help="use this running lab instead of bringing one up")


def pytest_report_header() -> str:
    return sizes.header()

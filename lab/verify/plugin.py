"""A pytest plugin that turns the tests of an area into promises with their evidence.

A test's docstring is the promise; what it records with the fixture `evidence` is the evidence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.verify import area_of

_results = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises", help="write the promises and their evidence to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_results] = []


@pytest.fixture
def evidence(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Record what was seen: `evidence("etcd 3.7.3, 1 member")`."""

    def record(what: object) -> None:
        record_property("evidence", str(what))

    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        item.config.stash[_results].append(_promise(item, report))
    return report


def _promise(item: pytest.Item, report: pytest.TestReport) -> dict[str, str]:
    doc = getattr(getattr(item, "obj", None), "__doc__", None) or item.name.replace("_", " ")
    seen = [str(value) for key, value in report.user_properties if key == "evidence"]
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        seen.append(str(crash.message if crash else report.longrepr).splitlines()[0])
    elif report.skipped and isinstance(report.longrepr, tuple):
        seen.append(str(report.longrepr[2]))
    suffix = item.name.partition("[")[2].rstrip("]")
    return {
        "area": area_of(item.path),
        "promise": " ".join(doc.split("\n\n")[0].split()).rstrip(".") + (f" [{suffix}]" if suffix else ""),
        "result": "error" if report.failed and report.when == "setup" else report.outcome,
        "evidence": "; ".join(seen),
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--promises")
    if file:
        Path(file).write_text(json.dumps(session.config.stash[_results]), encoding="utf-8")

"""A pytest plugin that turns the tests of an area into promises with their evidence.

A test's docstring is the promise; what it records with the fixture `evidence` is the evidence.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lab.verify import area_of


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--promises",
        type=int,
        help="write to this open descriptor, in lines of JSON, how many promises there are, then each",
    )


def pytest_configure(config: pytest.Config) -> None:
    to = config.getoption("--promises")
    if to is not None:
        os.set_inheritable(to, False)  # what tests start must not hold it open
        # By it we are asked to end, also where it was ignored, as in what a shell runs beside itself.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    _write(session.config, len(session.items))


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
        try:
            _write(item.config, _promise(item, report))
        except BrokenPipeError:
            item.session.shouldstop = "the one who asked is gone"
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


def _write(config: pytest.Config, what: object) -> None:
    to = config.getoption("--promises")
    if to is not None:
        os.write(to, json.dumps(what).encode() + b"\n")

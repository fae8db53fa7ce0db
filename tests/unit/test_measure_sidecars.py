"""The path through two sidecars: ratios within a round, CPU time by program, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from lab.measure import sidecars
from lab.measure.latency import report
from lab.measure.latency.result import FREE, GRAPH_SIZE, Row
from lab.measure.sidecars import ACCELERATED, HOPS, PLAIN, Found, Spent
from lab.measure.workload import Workload
from lab.render import RenderedNode


def rows(fast: float = 0.8, errors: int = 0) -> list[Row]:
    """Three rounds, each slower than the one before for both paths alike."""
    made = []
    for number in range(3):
        for path, share in ((PLAIN, 1.0), (ACCELERATED, fast)):
            us = 500 * (1 + number) * share
            seen = {50.0: us, 75.0: us * 1.1, 90.0: us * 1.2, 99.0: us * 2}
            made.append(Row("http", FREE, path, number, GRAPH_SIZE, 1, seen, 1e6 / us, us / 2, errors))
    return made


def spent() -> dict[str, dict[str, list[Spent]]]:
    return {
        path: {hop: [Spent(60 * (1 + number), 2, 1) for number in range(3)] for hop, _, _ in HOPS}
        for path in (PLAIN, ACCELERATED)
    }


def line(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in found if one["name"].endswith(name))


@pytest.mark.parametrize(
    ("fast", "name", "met"),
    [
        (0.8, "p50", True),
        (0.9, "p50", False),
        (1.0, "p99", True),
        (1.1, "p99", False),
        (0.94, "CPU a request", True),
        (0.96, "CPU a request", False),
    ],
)
def test_targets_are_judged_by_ratios_within_a_round(fast: float, name: str, met: bool) -> None:
    found = line(sidecars.figures(rows(fast)), name)
    assert (found["value"], found["least"], found["most"]) == (fast, fast, fast)
    assert found["met"] is met


def test_one_request_that_failed_in_one_round_misses_the_target() -> None:
    assert line(sidecars.figures(rows()), "errors")["met"] is True
    one = [Row(**{**vars(row), "errors": int(number == 4)}) for number, row in enumerate(rows())]
    assert line(sidecars.figures(one), "errors")["met"] is False


def test_no_line_is_told_of_what_was_not_measured() -> None:
    assert sidecars.figures([]) == []
    assert sidecars.breakdown(Found()) == []


def test_what_no_program_accounts_for_is_told_as_waiting() -> None:
    told = sidecars.breakdown(Found(rows(), spent()))
    plain = {one["where"]: one for one in told if one["path"] == PLAIN}
    assert plain["client"] == {"path": PLAIN, "where": "client", "us": 120, "own_us": 80, "kernel_us": 40}
    assert (plain["all programs"]["us"], plain["all programs"]["kernel_us"]) == (480, 160)
    assert plain["the rest: waiting"]["us"] == 1000 - 480
    assert plain["a request, mean"]["us"] == 1000


@pytest.mark.parametrize(
    "text",
    ["usage_usec 3000\nuser_usec 1000\nsystem_usec 2000\nnr_periods 0\n", "3000000\n1000000\n2000000\n"],
)
def test_both_kinds_of_cgroup_tell_cpu_time(text: str) -> None:
    assert sidecars.spent(text) == Spent(3000, 1000, 2000)


def test_the_kernels_share_is_of_the_exact_total() -> None:
    assert Spent(90, 1, 2).in_kernel == 60
    assert Spent(90).in_kernel == 0  # too little for a sample


@pytest.mark.parametrize(
    ("accelerated", "messages", "by_tcp", "carries"),
    [(True, 9, 1, True), (True, 9, 9, False), (False, 9, 0, False)],
)
def test_a_leg_is_accelerated_when_messages_take_it(
    accelerated: bool, messages: int, by_tcp: int, carries: bool
) -> None:
    way = {"messages": messages, "tcp_messages": by_tcp}
    none = {"messages": 0, "tcp_messages": 0}
    told = {"accelerated": accelerated, "from_client": none, "from_server": way}
    assert sidecars.carries(told) is carries


def test_the_plain_path_differs_by_the_opt_out_alone() -> None:
    pods = Workload(cast(Any, None), cast(Any, None), "somewhere")
    node = cast(RenderedNode, type("Node", (), {"name": "node-1"}))
    plain, fast = (sidecars.documents(pods, node, path) for path in (PLAIN, ACCELERATED))
    for one, other in zip(plain[:2], fast[:2], strict=True):
        assert one["metadata"]["annotations"] == {"underpass.dev/redirect": "disabled"}
        assert other["metadata"]["annotations"] == {}
        assert one["spec"] == other["spec"]


def test_the_page_shows_both_lines_and_the_breakdown(tmp_path: Path) -> None:
    found = Found(rows(), spent())
    machine = {"cpu": "cpu", "machine": "x86_64", "cpus": 2, "kernel": "6.18", "congestion_control": "bbr"}
    whole = report.document(
        found.rows, machine=machine, size={"rounds": 3}, versions={}, checked={}, notes=[],
        breakdown=sidecars.breakdown(found),
    )  # fmt: skip
    report.write(tmp_path, whole, found.rows)
    page = (tmp_path / "report.html").read_text()
    for word in (PLAIN, ACCELERATED, "client&#39;s Envoy", "the rest: waiting"):
        assert word in page, word

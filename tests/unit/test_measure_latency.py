"""From rows to judged ratios, pictures and a page; nothing is measured here."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from lab.errors import LabError
from lab.measure import tools
from lab.measure.latency import paths, post, report, run, streams
from lab.measure.latency.paths import BRIDGE, IN_KERNEL, NO_PROXY, PROXIES, UNIX, WITH_POLICY
from lab.measure.latency.result import (
    FREE,
    GRAPH_SIZE,
    ONE_CPU,
    SLOW_STREAM,
    STREAM,
    Row,
    figures,
    percentiles,
    table,
)
from lab.measure.latency.run import FULL, PARTS, QUICK, TINY, USUAL, accelerated, only
from tests.unit.test_measure_tools import SOCKPERF

SHARES = (50.0, 75.0, 90.0, 99.0, 99.9)


def rows(mode: str = FREE, /, **p50: float) -> list[Row]:
    """Three rounds; the machine is slower in each, all paths alike."""
    given = {BRIDGE: 36.0, NO_PROXY: 36.0, IN_KERNEL: 24.0, "Envoy": 96.0, UNIX: 22.0} | p50
    made = []
    for number in range(3):
        for path, us in given.items():
            slow = us * (1 + number)
            seen = {share: slow * (1 + share / 100) / 1.5 for share in SHARES}
            if path == UNIX:
                made.append(Row("pair", mode, path, number, GRAPH_SIZE, percentiles=seen))
                continue
            made.append(Row("tcp", mode, path, number, GRAPH_SIZE, percentiles=seen, rate=1e6 / slow, cpu=us))
            if path == IN_KERNEL:
                made.append(Row("pair", mode, path, number, GRAPH_SIZE, percentiles=seen))
    return made


def line(found: list[dict[str, object]], name: str, mode: str = FREE) -> dict[str, object]:
    return next(one for one in found if one["name"] == name and one["mode"] == mode)


def test_a_ratio_is_taken_within_a_round_so_that_a_slower_machine_does_not_show() -> None:
    found = line(figures(rows()), f"{IN_KERNEL} to {NO_PROXY}, p50")
    assert (found["value"], found["least"], found["most"], found["met"]) == (0.6667, 0.6667, 0.6667, True)


@pytest.mark.parametrize(
    ("mode", "name", "in_kernel", "met"),
    [
        (FREE, f"{IN_KERNEL} to {UNIX}, p50", 25.0, True),
        (FREE, f"{IN_KERNEL} to {UNIX}, p50", 26.0, False),
        (FREE, f"{IN_KERNEL} to {NO_PROXY}, p99", 37.0, False),
        (ONE_CPU, f"{IN_KERNEL} to {NO_PROXY}, p50", 18.0, True),
        (ONE_CPU, f"{IN_KERNEL} to {NO_PROXY}, p50", 19.0, False),
        (ONE_CPU, f"Envoy to {IN_KERNEL}, p50", 28.0, True),
        (ONE_CPU, f"Envoy to {IN_KERNEL}, p50", 29.0, False),
        (ONE_CPU, f"CPU a request, {IN_KERNEL} to {NO_PROXY}", 22.0, False),
    ],
)
def test_targets_are_those_of_the_mode(mode: str, name: str, in_kernel: float, met: bool) -> None:
    assert line(figures(rows(mode, **{IN_KERNEL: in_kernel})), name, mode)["met"] is met


@pytest.mark.parametrize(("guarded", "met"), [(24.1, True), (24.4, False)])
def test_what_policy_adds_is_a_line_of_its_own(guarded: float, met: bool) -> None:
    found = figures(rows(**{WITH_POLICY: guarded}))
    assert line(found, "policy and telemetry add, p50")["met"] is met


def test_a_path_that_was_not_measured_has_no_line_and_no_invented_figure() -> None:
    without = [row for row in rows() if row.path != IN_KERNEL]
    assert [one["name"] for one in figures(without) if IN_KERNEL in str(one["name"])] == []
    assert IN_KERNEL not in percentiles(without, "tcp", FREE)


def test_the_table_sums_errors_and_shows_how_far_rounds_lay_apart() -> None:
    bad = Row("tcp", FREE, "nginx", 0, GRAPH_SIZE, percentiles={50.0: 80.0}, errors=2)
    worse = Row("tcp", FREE, "nginx", 1, GRAPH_SIZE, percentiles={50.0: 100.0}, errors=3)
    (found,) = table([bad, worse])
    assert (found["p50"], found["p50_least"], found["p50_most"], found["errors"]) == (90.0, 80.0, 100.0, 5)


def test_a_folder_holds_data_pictures_and_a_page_that_name_the_machine(tmp_path: Path) -> None:
    made = [*rows(), *rows(ONE_CPU), Row("throughput", FREE, NO_PROXY, 0, 4096, rate=1e9)]
    made += [Row("http", FREE, NO_PROXY, 0, GRAPH_SIZE, n, {50.0: 60.0}, 9e3) for n in (1, 10)]
    made += [stream(NO_PROXY, rate=1e9, cpu=2.0, kind=kind) for kind in (STREAM, SLOW_STREAM)]
    machine = {
        "cpu": "A <CPU>", "cpus": 2, "kernel": "6.18.0", "machine": "x86_64", "congestion_control": "bbr",
    }  # fmt: skip
    whole = report.document(
        made,
        machine=machine,
        size={"rounds": 3},
        versions={"Envoy": "1.40.0"},
        checked={NO_PROXY: False, IN_KERNEL: True},
        notes=["nginx: left out"],
    )
    written = report.write(tmp_path, whole, made)
    assert all(file.stat().st_size for file in written)
    for name in (
        "latency", "latency-http", "throughput", "connections", "streams", "streams-cpu", "streams-slow",
    ):  # fmt: skip
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()
    page = (tmp_path / "report.html").read_text()
    for word in (
        "A &lt;CPU&gt;",
        "6.18.0",
        "TCP by bbr",
        "1.40.0",
        "nginx: left out",
        "latency.png",
        "0.6667",
    ):
        assert word in page
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["percentiles"]["99.9"]
    with (tmp_path / "result.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(made)


@pytest.mark.parametrize(
    ("enrolled", "redirected", "by_tcp", "told"),
    [(True, 900, 1, True), (True, 0, 900, False), (False, 0, 0, False), (True, 0, 0, None)],
)
def test_a_path_counts_as_accelerated_when_its_messages_are_redirected(
    enrolled: bool, redirected: int, by_tcp: int, told: bool | None
) -> None:
    one = {"accelerated": enrolled, "from_client": {"messages": redirected, "tcp_messages": by_tcp}}
    assert accelerated(json.dumps({"connections": [one]})) is told


@pytest.mark.parametrize("answer", ["invalid choice: 'explain'", "[]", "{}", '{"connections": []}'])
def test_a_node_that_cannot_tell_is_not_taken_at_its_word(answer: str) -> None:
    assert accelerated(answer) is None


def stream(path: str, *, rate: float, cpu: float, kind: str = STREAM, redirected: float = 0.0) -> Row:
    return Row(kind, FREE, path, 0, 4096, rate=rate, cpu=cpu, redirected=redirected)


@pytest.mark.parametrize("kind", [STREAM, SLOW_STREAM])
@pytest.mark.parametrize(("rate", "cpu", "met"), [(9.6e8, 2.1, (True, True)), (9.4e8, 2.2, (False, False))])
def test_a_stream_may_be_no_slower_nor_dearer_for_being_redirected(
    kind: str, rate: float, cpu: float, met: tuple[bool, bool]
) -> None:
    found = figures(
        [
            stream(NO_PROXY, rate=1e9, cpu=2.0, kind=kind),
            stream(IN_KERNEL, rate=rate, cpu=cpu, kind=kind, redirected=0.75),
        ]
    )
    name = f"{kind}, 4096 bytes, {IN_KERNEL}"
    fast = line(found, f"{name} to {NO_PROXY}, rate")
    cheap = line(found, f"{name} to {NO_PROXY}, bytes for the sender's CPU")
    assert (fast["met"], cheap["met"]) == met
    assert cheap["value"] == pytest.approx(2.0 / cpu, rel=1e-3)
    assert line(found, f"{name}, redirected")["value"] == 0.75


@pytest.mark.parametrize(
    ("ways", "share"),
    [
        ([(750, 250)], 0.75),
        ([(0, 0)], 0.0),  # plain TCP has no counters
        ([], None),
    ],
)
def test_how_much_of_a_stream_was_redirected_is_the_nodes_own_count(
    ways: list[tuple[int, int]], share: float | None
) -> None:
    told = [{"from_client": {"bytes": fast, "tcp_bytes": rest}} for fast, rest in ways]
    assert streams.redirected(json.dumps({"connections": told})) == share
    assert streams.redirected("no agent") is None


@pytest.mark.parametrize(("way", "by_socket"), [(NO_PROXY, 10), (IN_KERNEL, 0)])
def test_a_stream_that_is_not_what_its_path_claims_ends_the_run(way: str, by_socket: int) -> None:
    answer = json.dumps({"connections": [{"from_client": {"bytes": by_socket, "tcp_bytes": 10}}]})
    client, node = Mock(ask=Mock(return_value="{}")), Mock(ask=Mock(return_value=answer))
    chosen = next(one for one in paths.WAYS if one.name == way)
    with pytest.raises(LabError, match="redirected"):
        list(streams.round_(client, node, [(chosen, "10.0.0.1", "a b")], FREE, 0, (4096,), 1, 0))


def test_the_quick_and_the_tiny_graph_have_no_streams_unless_they_are_asked_for() -> None:
    assert (only(QUICK, ()).stream_rounds, only(TINY, ()).stream_rounds) == (0, 0)
    assert only(QUICK, ["streams"]).stream_rounds
    assert only(QUICK, ["streams"]).rounds == 0
    assert (only(TINY, ["graph", "streams"]).rounds, only(TINY, ["graph", "streams"]).stream_rounds) == (1, 1)
    assert {64, 256, 1024, 4096, 16384, 65536} == set(FULL.stream_sizes)


def test_a_part_alone_leaves_the_other_out() -> None:
    assert (only(USUAL, ["graph"]).rounds, only(USUAL, ["graph"]).sweep_rounds) == (USUAL.rounds, 0)
    assert (only(USUAL, ["sizes"]).rounds, only(USUAL, ["sizes"]).sweep_rounds) == (0, USUAL.sweep_rounds)
    assert only(USUAL, ()) == only(USUAL, tuple(PARTS)) == USUAL
    assert only(USUAL, (), 4) == replace(USUAL, rounds=4)
    assert only(USUAL, ["streams"], 4).stream_rounds == 4
    assert only(USUAL, ["sizes"], 4).sweep_rounds == 4


def test_the_posts_figures_have_in_kernel_below_no_proxy() -> None:
    ratio = {share: us / post.FIGURES[NO_PROXY][share] for share, us in post.FIGURES[IN_KERNEL].items()}
    assert (round(ratio[50.0], 2), round(ratio[99.0], 2)) == (0.67, 0.74)
    assert set(PROXIES) < set(post.FIGURES)


def test_every_proxy_listens_where_its_path_goes_and_leads_to_the_server() -> None:
    envoy = yaml.safe_load(paths.config("envoy.yaml", server="10.9.9.9"))["static_resources"]
    ports = {one["address"]["socket_address"]["port_value"] for one in envoy["listeners"]}
    ways = {way.name: way for way in paths.WAYS}
    assert ports == {ways["Envoy"].tcp, ways["Envoy"].http}
    for name, file, word in (("HAProxy", "haproxy.cfg", "bind :"), ("nginx", "nginx.conf", "listen ")):
        text = paths.config(file, server="10.9.9.9")
        assert f"{word}{ways[name].tcp}" in text
        assert f"{word}{ways[name].http}" in text
        assert f"10.9.9.9:{paths.ECHO}" in text
        assert f"10.9.9.9:{paths.WEB}" in text


class Stalled:
    """A shell on a machine that stood still during the first measurement."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers

    def ask(self, _: str, **__: object) -> str:
        return self.answers.pop(0)


def test_a_second_in_which_the_machine_stood_still_is_measured_again() -> None:
    bench = Mock(cpu=Mock(side_effect=[0.0, 100.0, 150.0]))
    bench.of.return_value = (Stalled([tools.SOCKPERF_SAW_NOTHING, SOCKPERF]), "10.0.0.1")
    row = run._tcp(bench, paths.WAYS[1], FREE, 0, GRAPH_SIZE, 1)
    assert row.percentiles[50.0] > 0
    assert row.cpu is not None
    assert row.cpu * tools.sockperf_latency(SOCKPERF).requests == pytest.approx(50.0)

"""Quantiles, ratios within a round, and what meets a target."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.measure.agent_cost import components
from lab.measure.statistics import bucket_quantile, figure, quantile, ratios

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=200)


@given(VALUES, st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < math.ceil(share * len(values))


def test_ratios_are_of_one_round_each() -> None:
    assert ratios([10.0, 40.0], [5.0, 10.0]) == [2.0, 4.0]
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("target", "met"),
    [
        ({"at_most": 2.0}, True),
        ({"at_most": 1.9}, False),
        ({"at_least": 2.0}, True),
        ({"at_least": 2.1}, False),
    ],
)
def test_the_median_meets_its_target_or_does_not(target: dict[str, float], met: bool) -> None:
    line = figure("ratio", "x", [9.0, 1.0, 2.0], **target)
    assert (line["value"], line["least"], line["most"], line["samples"]) == (2.0, 1.0, 9.0, 3)
    assert line["met"] is met


def test_a_figure_without_target_is_not_judged() -> None:
    assert figure("x", "us", [1.0])["met"] is None


def test_a_p99_target_is_judged_by_the_p99() -> None:
    assert figure("x", "ms", [1.0] * 98 + [500.0] * 2, at_most=100.0, share=0.99)["met"] is False


def test_a_buckets_quantile_is_its_upper_bound() -> None:
    buckets = [(0.1, 50.0), (0.15, 99.0), (math.inf, 100.0)]
    assert (bucket_quantile(buckets, 0.5), bucket_quantile(buckets, 0.99)) == (0.1, 0.15)
    assert bucket_quantile(buckets, 1.0) == math.inf
    with pytest.raises(ValueError, match="empty"):
        bucket_quantile([(0.1, 0.0)], 0.5)


def test_memory_is_summed_by_pod_by_unit_and_by_process() -> None:
    uid = "91ea8bfe-ee09-4831-acfb-10b16f10209c"
    pod = f"9:name=systemd:/kubepods/burstable/pod{uid}/489de6e7\n8:pids:/kubepods/burstable/pod{uid}/489\n"
    unit = "9:name=systemd:/system.slice/etcd.service\n1:cpu:/\n0::/system.slice/etcd.service\n"
    found = components(
        "node-1",
        [
            {"name": "envoy", "kib": 2048, "cgroup": pod},
            {"name": "envoy", "kib": 1024, "cgroup": pod},
            {"name": "pilot-agent", "kib": 512, "cgroup": pod},
            {"name": "etcd", "kib": 10240, "cgroup": unit},
            {"name": "systemd", "kib": 256, "cgroup": "0::/init.scope\n"},
        ],
        {uid: "default/web"},
    )
    assert [(row["kind"], row["component"], row["process"], row["count"], row["mib"]) for row in found] == [
        ("unit", "etcd", "etcd", 1, 10.0),
        ("pod", "default/web", "envoy", 2, 3.0),
        ("pod", "default/web", "pilot-agent", 1, 0.5),
        ("other", "", "systemd", 1, 0.2),
    ]

"""The figures of the path through two sidecars: percentiles, medians over rounds, and what failed."""

from __future__ import annotations

import pytest

from lab.measure.sidecars import ACCELERATED, PLAIN, Path, _documents, percentile


@pytest.mark.parametrize(("share", "value"), [(0.5, 51.0), (0.9, 91.0), (0.99, 100.0), (1.0, 100.0)])
def test_percentiles_are_values_that_were_seen(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], share) == value


def test_a_path_is_told_by_the_medians_of_its_rounds() -> None:
    path = Path(PLAIN, p50=[100, 300, 200], p90=[1, 1, 1], p99=[2, 2, 9], cpu=[5, 6, 7], errors=1)
    told = path.to_dict()
    assert (told["p50"], told["p99"], told["cpu"], told["errors"]) == (200, 2, 6, 1)
    assert told["spread"] == 1.0


def test_the_plain_path_differs_by_the_opt_out_alone() -> None:
    images = {"curl": "c", "httpbin": "h"}
    plain, fast = (_documents(name, "node-1", images) for name in (PLAIN, ACCELERATED))
    for one, other in zip(plain[:2], fast[:2], strict=True):
        assert one["metadata"]["annotations"] == {"underpass.dev/redirect": "disabled"}
        assert other["metadata"]["annotations"] == {}
        mine, its = one["spec"], other["spec"]
        assert mine == its

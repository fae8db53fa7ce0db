"""What is said about a row of values: medians, percentiles, spread, ratios, and whether a target is met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def quantile(values: Iterable[float], share: float) -> float:
    """The value that `share` (0 to 1) of all values do not exceed: one of them, never one between two."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each round: rounds are interleaved, and only values of one round are held together."""
    if len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} rounds")
    return [high / low for high, low in zip(above, below, strict=True)]


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    share: float = 0.5,
) -> dict[str, Any]:
    """One line of a result: the quantile `share` of `values`, their spread, the target and whether it is met.

    `met` is None where there is no target.
    """
    value = statistics.median(values) if share == 0.5 else quantile(values, share)
    target = at_most if at_most is not None else at_least
    met = None
    if at_most is not None:
        met = value <= at_most
    elif at_least is not None:
        met = value >= at_least
    sign = "<=" if at_most is not None else ">="
    return {
        "name": name,
        "unit": unit,
        "value": _short(value),
        "least": _short(min(values)),
        "most": _short(max(values)),
        "samples": len(values),
        "target": None if target is None else f"{sign} {target:g}",
        "met": met,
    }


def bucket_quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """The upper bound of the bucket in which the quantile lies.

    `buckets` are a Prometheus histogram's: (upper bound, count up to it), in order, the last is infinity.
    """
    if not buckets or not buckets[-1][1]:
        raise ValueError("an empty histogram")
    wanted = share * buckets[-1][1]
    return next(bound for bound, count in buckets if count >= wanted)


def _short(value: float) -> float:
    """Four digits that count."""
    return float(f"{value:.4g}")

"""Reason codes, read from `include/reasons.h`: the one table that the programs and Python share."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

HEADER = Path(__file__).parent / "include" / "reasons.h"
_ROW = re.compile(r'REASON\((\w+), (\d+), "([a-z0-9-]+)", "([^"]+)"\)')
_FIRST_DROP = re.compile(r"#define REASON_FIRST_DROP (\d+)")


@dataclass(frozen=True, slots=True)
class Reason:
    """One row. label: the C name without its prefix; name: what users see."""

    number: int
    label: str
    name: str
    meaning: str
    drop: bool


@functools.cache
def table() -> tuple[Reason, ...]:
    """All reasons in the order of their numbers."""
    text = HEADER.read_text()
    first = _FIRST_DROP.search(text)
    if first is None:
        raise ValueError(f"{HEADER}: REASON_FIRST_DROP is missing")
    boundary = int(first.group(1))
    rows = [
        Reason(int(number), label, name, meaning, int(number) >= boundary)
        for label, number, name, meaning in _ROW.findall(text)
    ]
    return tuple(sorted(rows, key=lambda reason: reason.number))


@functools.cache
def by_number() -> dict[int, Reason]:
    """Reasons by number."""
    return {reason.number: reason for reason in table()}


@functools.cache
def by_label() -> dict[str, Reason]:
    """Reasons by C name, such as POLICY_DENIED."""
    return {reason.label: reason for reason in table()}


def name_of(number: int) -> str:
    """The public name; `reason-N` for a number that this version does not know."""
    reason = by_number().get(number)
    return reason.name if reason else f"reason-{number}"

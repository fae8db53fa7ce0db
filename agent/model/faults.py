"""Reading documents of the API so that all their faults are found, each with its path.

Readers append to a list of faults and go on with what they could read; whoever called them looks whether the
list has grown, and decides what a part with faults is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """A part of a document that is not supported or not readable. `path` is complete from its root."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def known_fields(document: object, known: Sequence[str], path: str, faults: list[Fault]) -> dict[str, object]:
    """`document` as an object; {} where it is none. Each field that it has beside `known` is a fault."""
    if not isinstance(document, dict):
        faults.append(Fault(path, "must be an object"))
        return {}
    faults.extend(
        Fault(f"{path}.{name}", "field is not supported")
        for name, value in document.items()
        if name not in known and value not in (None, [], {})
    )
    return document


def list_at(document: dict[str, object], name: str, path: str, faults: list[Fault]) -> list[object] | None:
    """The list in field `name`; None where the field is absent, [] where it is no list."""
    value = document.get(name)
    if value is None or isinstance(value, list):
        return value
    faults.append(Fault(f"{path}.{name}", "must be a list"))
    return []

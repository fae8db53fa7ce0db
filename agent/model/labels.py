"""Label selectors with Kubernetes' meaning, over plain mappings of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.model.faults import Fault
from agent.model.objects import Labels


@dataclass(frozen=True, slots=True)
class Requirement:
    """One test of a label. `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        if self.operator == "Exists":
            return value is not None
        return value is None


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; none at all selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    def both(self, other: Selector) -> Selector:
        """What this and the other select together (logical and)."""
        seen = dict.fromkeys((*self.requirements, *other.requirements))
        return Selector(tuple(seen))


EVERYTHING = Selector()


def parse_selector(
    document: object, name: Callable[[str], str], path: str, faults: list[Fault]
) -> Selector | None:
    """A LabelSelector document (matchLabels, matchExpressions) as a `Selector`.

    `name` turns a key of the document into the key of a label (ValueError if there is none such). Gives None
    and every fault where something cannot be read: leaving that out would select more than was meant.
    """
    if not isinstance(document, Mapping):
        faults.append(Fault(path, "a selector must be an object"))
        return None
    before = len(faults)
    faults.extend(
        Fault(f"{path}.{field}", "unknown field of a selector")
        for field in sorted(set(document) - {"matchLabels", "matchExpressions"})
    )
    labels = document.get("matchLabels") or {}
    expressions = document.get("matchExpressions") or []
    if not isinstance(labels, Mapping):
        faults.append(Fault(f"{path}.matchLabels", "must be an object"))
        labels = {}
    if not isinstance(expressions, list):
        faults.append(Fault(f"{path}.matchExpressions", "must be a list"))
        expressions = []
    found: list[Requirement] = []
    for key in sorted(labels):
        where = f"{path}.matchLabels.{key}"
        values = _texts([labels[key]], where, faults)
        found.append(Requirement(_key(key, name, where, faults), "In", values))
    found.extend(
        _expression(expression, name, f"{path}.matchExpressions[{index}]", faults)
        for index, expression in enumerate(expressions)
    )
    return Selector(tuple(found)) if len(faults) == before else None


def _expression(document: object, name: Callable[[str], str], path: str, faults: list[Fault]) -> Requirement:
    if not isinstance(document, Mapping):
        faults.append(Fault(path, "must be an object"))
        return Requirement("", "")
    key = _key(document.get("key"), name, f"{path}.key", faults)
    operator = str(document.get("operator"))
    values = document.get("values") or []
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        faults.append(Fault(f"{path}.operator", f"unknown operator {operator!r}"))
    if not isinstance(values, list):
        faults.append(Fault(f"{path}.values", "must be a list"))
        return Requirement("", "")
    if operator in ("In", "NotIn") and not values:
        faults.append(Fault(f"{path}.values", f"{operator} needs values"))
    if operator in ("Exists", "DoesNotExist") and values:
        faults.append(Fault(f"{path}.values", f"{operator} takes no values"))
    return Requirement(key, operator, _texts(values, f"{path}.values", faults))


def _key(raw: object, name: Callable[[str], str], path: str, faults: list[Fault]) -> str:
    if not isinstance(raw, str) or not raw:
        faults.append(Fault(path, "a key must be a non-empty string"))
        return ""
    try:
        return name(raw)
    except ValueError as fault:
        faults.append(Fault(path, str(fault)))
        return ""


def _texts(values: list[object], path: str, faults: list[Fault]) -> frozenset[str]:
    texts = frozenset(value for value in values if isinstance(value, str))
    if not all(isinstance(value, str) for value in values):
        faults.append(Fault(path, "a value must be a string"))
    return texts

"""Label selectors with Kubernetes' meaning, over plain mappings of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.model.objects import Labels


class BadSelectorError(ValueError):
    """A selector that cannot be read. `path` is the field, from the selector's own root."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


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


def parse_selector(document: object, name: Callable[[str], str]) -> Selector:
    """A LabelSelector document (matchLabels, matchExpressions) as a `Selector`.

    `name` turns a key of the document into the key of a label (ValueError if there is none such).
    Raises BadSelectorError with the path of what cannot be read; an unknown field is a fault, since
    leaving it out would select more than was meant.
    """
    if not isinstance(document, Mapping):
        raise BadSelectorError("", "a selector must be an object")
    unknown = sorted(set(document) - {"matchLabels", "matchExpressions"})
    if unknown:
        raise BadSelectorError(str(unknown[0]), "unknown field of a selector")

    def key_of(raw: object, path: str) -> str:
        if not isinstance(raw, str) or not raw:
            raise BadSelectorError(path, "a key must be a non-empty string")
        try:
            return name(raw)
        except ValueError as fault:
            raise BadSelectorError(path, str(fault)) from fault

    found: list[Requirement] = []
    labels = document.get("matchLabels") or {}
    if not isinstance(labels, Mapping):
        raise BadSelectorError("matchLabels", "must be an object")
    for key in sorted(labels):
        path = f"matchLabels.{key}"
        found.append(Requirement(key_of(key, path), "In", frozenset([_text(labels[key], path)])))
    expressions = document.get("matchExpressions") or []
    if not isinstance(expressions, list):
        raise BadSelectorError("matchExpressions", "must be a list")
    found.extend(
        _expression(expression, f"matchExpressions[{index}]", key_of)
        for index, expression in enumerate(expressions)
    )
    return Selector(tuple(found))


def _expression(expression: object, path: str, key_of: Callable[[object, str], str]) -> Requirement:
    if not isinstance(expression, Mapping):
        raise BadSelectorError(path, "must be an object")
    key = key_of(expression.get("key"), f"{path}.key")
    operator = expression.get("operator")
    values = expression.get("values") or []
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        raise BadSelectorError(f"{path}.operator", f"unknown operator {operator!r}")
    if not isinstance(values, list):
        raise BadSelectorError(f"{path}.values", "must be a list")
    if operator in ("In", "NotIn") and not values:
        raise BadSelectorError(f"{path}.values", f"{operator} needs values")
    if operator in ("Exists", "DoesNotExist") and values:
        raise BadSelectorError(f"{path}.values", f"{operator} takes no values")
    texts = frozenset(_text(value, f"{path}.values") for value in values)
    return Requirement(key, operator, texts)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise BadSelectorError(path, "a value must be a string")
    return value

"""What the pinned maps should hold, kept by parts, so that one thing's change touches only its own entries.

A `Wanted` table is a sum of parts; a part has an owner (an endpoint, a node, a policy) and is replaced
as a whole. What must be written is known from the keys that changed, never by comparing everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Owner = tuple[str, ...]


class Wanted(Generic[K, V]):
    """One table as it should be. Where parts disagree about a key, the owner that sorts first wins."""

    def __init__(self) -> None:
        self._parts: dict[Owner, Mapping[K, V]] = {}
        self._claims: dict[K, dict[Owner, V]] = {}
        self._changed: set[K] = set()

    def put(self, owner: Owner, part: Mapping[K, V]) -> None:
        """Replace what `owner` wants; an empty part takes it back."""
        before = self._parts.get(owner, {})
        for key in before:
            if key not in part:
                claims = self._claims[key]
                del claims[owner]
                if not claims:
                    del self._claims[key]
                self._changed.add(key)
        for key, value in part.items():
            if key not in before or before[key] != value:
                self._claims.setdefault(key, {})[owner] = value
                self._changed.add(key)
        if part:
            self._parts[owner] = dict(part)
        else:
            self._parts.pop(owner, None)

    def owners(self, first: str) -> list[Owner]:
        """The owners whose first word is `first`."""
        return [owner for owner in self._parts if owner[0] == first]

    def get(self, key: K) -> V | None:
        """What `key` should hold; None for nothing."""
        claims = self._claims.get(key)
        return claims[min(claims)] if claims else None

    def all(self) -> dict[K, V]:
        """The whole table."""
        return {key: claims[min(claims)] for key, claims in self._claims.items()}

    def take(self) -> set[K]:
        """The keys that may differ from the last time; they count as dealt with from now on."""
        changed, self._changed = self._changed, set()
        return changed

    def again(self, keys: set[K]) -> None:
        """Count `keys` as changed once more (they could not be written)."""
        self._changed |= keys

    def __len__(self) -> int:
        return len(self._claims)

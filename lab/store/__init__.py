"""The artifact store: what was built, once, for all labs of this user."""

from lab.store.artifact import Artifact, Building, Manifest, Recipe
from lab.store.store import Store

__all__ = ["Artifact", "Building", "Manifest", "Recipe", "Store"]

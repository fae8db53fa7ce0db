"""Typed access to the pinned maps."""

from datapath.maps.opened import DEFAULT_PINS, Maps, open_maps
from datapath.maps.redirect import Direction, Redirect, RedirectConnection
from datapath.maps.spec import MapSpec, specs
from datapath.maps.typed import TypedMap

__all__ = [
    "DEFAULT_PINS",
    "Direction",
    "MapSpec",
    "Maps",
    "Redirect",
    "RedirectConnection",
    "TypedMap",
    "open_maps",
    "specs",
]
